"""lgssd: negotiates for those who ask through its socket (PROTOCOL 9's records)."""
