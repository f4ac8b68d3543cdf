"""Lets every test folder import the shared material that lies directly in ``tests/``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
