"""lgssd: has contexts negotiated by resident workers, for the kernel's upcalls and for the records of
docs/protocol.md 9.  docs/architecture.md, "With lgssd", has the words that are used here."""
