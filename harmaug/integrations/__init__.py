"""What adapts harmaug to other packages; nothing in the core imports it."""
