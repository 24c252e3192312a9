#!/usr/bin/python3 -IS
"""lgssd: what is installed as /usr/sbin/lgssd; see lgssd(8)."""

import os
import sys

# As in lgss_keyring.py: package and dependencies lie beside the file that the link points to.
sys.path.append(os.path.dirname(os.path.realpath(__file__)))

from lgss_keyring.daemon.__main__ import main

if __name__ == "__main__":
    main(prog_name="lgssd")
