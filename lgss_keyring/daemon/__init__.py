"""lgssd: negotiates for those who ask through its socket (the records of docs/protocol.md 9)."""
