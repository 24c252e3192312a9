"""Where the initiator's credential comes from: one module for each kind."""
