"""Pure floor of the ledger: money, meters, pricing, the hold."""
