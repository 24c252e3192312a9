"""What upcalls and the library cost; not installed."""
