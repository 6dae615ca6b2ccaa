"""Every contact with the inside of vLLM; each module has its entries of the ledger beside what it patches."""
