#!/usr/bin/python3 -IS
"""The least a Python handler can do: take authority, instantiate, exit.

The bench's yardstick (b), run with the front's interpreter, flags and binding.
"""

import os
import sys

sys.path.append(os.path.dirname(os.path.realpath(__file__)))

from lgss_keyring.front import keyctl

key = int(sys.argv[sys.argv.index("create") + 1])
keyctl.assume_authority(key)
keyctl.instantiate(key, b"\0", 0)
os._exit(0)
