"""The operator's command line: thin commands over the control plane, the ledger and the stack."""
