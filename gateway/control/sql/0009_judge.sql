-- What judging live answers costs the platform, at vendors' list prices.
ALTER TABLE control.judge_window ADD COLUMN cost_micros bigint NOT NULL DEFAULT 0 CHECK (cost_micros >= 0);
