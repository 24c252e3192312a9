"""What Lustre does with a Kerberos key: derivation (RFC 3961) and message tokens."""
