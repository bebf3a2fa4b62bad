"""Small utilities: ``python -m harmaug.tools.NAME``."""
