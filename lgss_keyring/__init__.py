"""The user-space half of Lustre's client security.

Kept empty on purpose: the front (``lgss_keyring.py``) imports
``lgss_keyring.front.keyctl`` while somebody waits in request_key(2), and every
statement here would be paid for by that caller.
"""
