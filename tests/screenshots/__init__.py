"""What the documentation looks like in a browser: ``python -m tests.screenshots``."""
