"""python -m harmaug: the command line."""
import sys

from harmaug.cli import main

sys.exit(main())
