-- Escrow that can be lost and found: epochs of each shard, credit frozen by their end, settlements that Postgres books
-- without Redis, holds that live on in Postgres, and credit that Redis gives back. All locks are short: new columns have
-- constant defaults, so no table is rewritten.

-- ── A third account of each organization: what was escrow of a lost epoch, until it is known what was spent of it ───
ALTER TABLE ledger.account
    DROP CONSTRAINT account_kind_check,
    DROP CONSTRAINT account_check,
    ADD CONSTRAINT account_kind_check CHECK (kind IN ('external', 'available', 'escrow', 'frozen', 'revenue')),
    ADD CONSTRAINT account_check CHECK ((kind IN ('available', 'escrow', 'frozen')) = (org_id IS NOT NULL));
ALTER TABLE ledger.balance ADD COLUMN frozen_nanos bigint NOT NULL DEFAULT 0 CHECK (frozen_nanos >= 0);
CREATE INDEX balance_frozen ON ledger.balance (org_id) WHERE frozen_nanos > 0;
INSERT INTO ledger.account (kind, org_id) SELECT 'frozen', org_id FROM ledger.balance;

-- return: escrow > available · freeze: escrow or available > frozen · release: frozen > available. Charges may also be
-- taken from frozen, and refunds may go to available.
ALTER TABLE ledger.transfer
    DROP CONSTRAINT transfer_kind_check,
    ADD CONSTRAINT transfer_kind_check CHECK (kind IN
        ('top_up', 'grant', 'return', 'freeze', 'release', 'charge', 'late_charge', 'late_refund'));

-- ── Usage ───────────────────────────────────────────────────────────────────────────────────────────────────────────
-- recovered: booked by Postgres itself, for a hold that Redis does not know (any more). Its seq is 0.
ALTER TABLE ledger.usage_event
    ADD COLUMN recovered boolean NOT NULL DEFAULT false,
    ADD COLUMN discount_bps integer NOT NULL DEFAULT 0 CHECK (discount_bps BETWEEN 0 AND 10000);

-- ── Epochs are of one shard ─────────────────────────────────────────────────────────────────────────────────────────
-- A shard's current epoch is the highest number with its shard or none. The first epoch has no shard: it is everyone's.
-- Every later one closes another: what it says about loss, freezing and release is about the one that it closes.
ALTER TABLE ledger.epoch
    ADD COLUMN shard smallint CHECK (shard >= 0),
    ADD COLUMN closes integer REFERENCES ledger.epoch,
    ADD COLUMN lost_booked_seq bigint,
    ADD COLUMN lost_redis_seq bigint,
    ADD COLUMN lost_witnessed_seq bigint,
    ADD COLUMN frozen_nanos numeric NOT NULL DEFAULT 0 CHECK (frozen_nanos >= 0),
    ADD COLUMN release_after timestamptz,
    ADD COLUMN released_at timestamptz,
    ADD COLUMN released_nanos numeric NOT NULL DEFAULT 0 CHECK (released_nanos >= 0),
    ADD CHECK (closes < number),
    ADD CHECK (closes IS NULL OR (shard IS NOT NULL AND release_after IS NOT NULL));
CREATE INDEX epoch_of_shard ON ledger.epoch (shard, number);
CREATE UNIQUE INDEX epoch_closed_once ON ledger.epoch (shard, closes) WHERE closes IS NOT NULL;

CREATE FUNCTION ledger.guard_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.number, OLD.opened_at, OLD.reason, OLD.shard, OLD.closes, OLD.lost_booked_seq, OLD.lost_redis_seq,
        OLD.lost_witnessed_seq, OLD.release_after)
       IS DISTINCT FROM (NEW.number, NEW.opened_at, NEW.reason, NEW.shard, NEW.closes, NEW.lost_booked_seq, NEW.lost_redis_seq,
        NEW.lost_witnessed_seq, NEW.release_after)
       OR (OLD.released_at IS NOT NULL AND OLD.released_at IS DISTINCT FROM NEW.released_at) THEN
        RAISE EXCEPTION 'an epoch is never rewritten' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER never_rewritten BEFORE UPDATE ON ledger.epoch FOR EACH ROW EXECUTE FUNCTION ledger.guard_epoch();
CREATE TRIGGER never_deleted BEFORE DELETE ON ledger.epoch FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON ledger.epoch EXECUTE FUNCTION ledger.refuse_change();

-- What the guardian saw and did, for `ledger status`.
CREATE TABLE ledger.guardian_event (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    shard         smallint NOT NULL,
    kind          text NOT NULL CHECK (kind IN
                      ('begun', 'same_epoch', 'new_epoch', 'wiped', 'loaded', 'released', 'refused', 'reaped_carried')),
    epoch         integer,
    redis_epoch   integer,
    redis_seq     bigint,
    booked_seq    bigint,
    witnessed_seq bigint,
    detail        jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX guardian_event_of_shard ON ledger.guardian_event (shard, id);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.guardian_event FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON ledger.guardian_event EXECUTE FUNCTION ledger.refuse_change();

-- The highest event number that any worker has seen, written when Redis did not let it in.
CREATE TABLE ledger.witness (
    shard       smallint NOT NULL,
    epoch       integer NOT NULL,
    seq         bigint NOT NULL CHECK (seq >= 0),
    reported_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (shard, epoch)
);

-- Which event is booked at the checkpoint: kind:hold or organization:amount:time in ms. Empty before the first one.
ALTER TABLE ledger.reconcile_checkpoint ADD COLUMN last_event text NOT NULL DEFAULT '';

-- ── Holds of lost epochs whose stream goes on ───────────────────────────────────────────────────────────────────────
CREATE TABLE ledger.carried_hold (
    hold_id       text COLLATE "C" PRIMARY KEY,
    org_id        text COLLATE "C" NOT NULL,
    shard         smallint NOT NULL,
    epoch         integer NOT NULL,
    held_nanos    bigint NOT NULL CHECK (held_nanos >= 0),
    accrued_nanos bigint NOT NULL CHECK (accrued_nanos >= 0),
    info          bytea NOT NULL, -- JSON as it came; no byte of it may keep a charge out of the books
    expires_at    timestamptz NOT NULL,
    carried_at    timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 70);
CREATE INDEX carried_hold_expiry ON ledger.carried_hold (shard, expires_at);
CREATE INDEX carried_hold_of_organization ON ledger.carried_hold (org_id);

-- ── Credit that comes back from Redis ───────────────────────────────────────────────────────────────────────────────
-- hold_id: not given back by Redis but spent there, on a hold that recovery had charged before; so the books return it.
CREATE TABLE ledger.escrow_return (
    id           text COLLATE "C" PRIMARY KEY,
    org_id       text COLLATE "C" NOT NULL REFERENCES ledger.balance,
    epoch        integer NOT NULL REFERENCES ledger.epoch,
    shard        smallint NOT NULL,
    seq          bigint NOT NULL CHECK (seq > 0),
    amount_nanos bigint NOT NULL CHECK (amount_nanos > 0),
    hold_id      text COLLATE "C",
    returned_at  timestamptz NOT NULL,
    UNIQUE (shard, epoch, seq)
);
CREATE INDEX escrow_return_of_organization ON ledger.escrow_return (org_id, epoch);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.escrow_return FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON ledger.escrow_return EXECUTE FUNCTION ledger.refuse_change();

-- ── Frozen credit ───────────────────────────────────────────────────────────────────────────────────────────────────
-- freeze: all escrow of an organization, when its epoch is lost · release: what is not needed of that, in parts ·
-- cover: moved from available because a recovered charge found too little frozen. `epoch` is always the lost one.
CREATE TABLE ledger.escrow_freeze (
    id           text COLLATE "C" PRIMARY KEY,
    org_id       text COLLATE "C" NOT NULL REFERENCES ledger.balance,
    shard        smallint NOT NULL,
    epoch        integer NOT NULL,
    kind         text NOT NULL CHECK (kind IN ('freeze', 'release', 'cover')),
    amount_nanos bigint NOT NULL CHECK (amount_nanos > 0),
    hold_id      text COLLATE "C",
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((kind = 'cover') = (hold_id IS NOT NULL))
);
CREATE UNIQUE INDEX escrow_frozen_once ON ledger.escrow_freeze (org_id, epoch) WHERE kind = 'freeze';
CREATE INDEX escrow_freeze_of_epoch ON ledger.escrow_freeze (shard, epoch, org_id);
CREATE INDEX escrow_freeze_of_organization ON ledger.escrow_freeze (org_id, epoch);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.escrow_freeze FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON ledger.escrow_freeze EXECUTE FUNCTION ledger.refuse_change();

-- A grant whose epoch ended before Redis confirmed it is `frozen`: never sent again, and its credit was frozen.
ALTER TABLE ledger.escrow_grant
    DROP CONSTRAINT escrow_grant_state_check,
    ADD CONSTRAINT escrow_grant_state_check CHECK (state IN ('pending', 'applied', 'frozen'));
CREATE INDEX escrow_grant_of_epoch ON ledger.escrow_grant (epoch, org_id);

CREATE OR REPLACE FUNCTION ledger.guard_grant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.id, OLD.org_id, OLD.epoch, OLD.grant_seq, OLD.amount_nanos, OLD.created_at)
       IS DISTINCT FROM (NEW.id, NEW.org_id, NEW.epoch, NEW.grant_seq, NEW.amount_nanos, NEW.created_at)
       OR (OLD.state <> 'pending' AND NEW.state <> OLD.state) OR (OLD.seq IS NOT NULL AND OLD.seq IS DISTINCT FROM NEW.seq) THEN
        RAISE EXCEPTION 'a grant is never rewritten' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;

-- A settlement that has no place in the books is kept once, however often it is sent.
CREATE UNIQUE INDEX anomaly_refused_once ON ledger.anomaly (stream_id) WHERE kind = 'unrecoverable';

REVOKE UPDATE, DELETE, TRUNCATE ON ledger.guardian_event, ledger.escrow_return, ledger.escrow_freeze FROM PUBLIC, CURRENT_USER;
REVOKE DELETE, TRUNCATE ON ledger.epoch FROM PUBLIC, CURRENT_USER;
