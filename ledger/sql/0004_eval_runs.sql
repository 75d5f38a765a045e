-- An eval run is charged once, for all of its answers together: each of them has its own price (a flat rate, or a vendor's
-- list price for the tokens it used), so what is metered is their sum.
ALTER TABLE ledger.usage_event ADD COLUMN eval_micros bigint NOT NULL DEFAULT 0 CHECK (eval_micros >= 0);
