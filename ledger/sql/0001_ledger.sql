-- The double-entry ledger. Amounts are whole nano-USD. No extension and no special role is needed: a role that
-- may create this schema can run all of it.

-- ── Identifiers carry their own time ────────────────────────────────────────────────────────────────────────
-- Every id is <prefix>_<26 lower-case Crockford base32 characters>: 48 bits of Unix milliseconds, 80 random bits.
-- The month of a row follows from its id, never from its arrival, so a retry a month later meets the same
-- partition and the same unique key.
CREATE FUNCTION ledger.id_time(id text) RETURNS timestamptz
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT to_timestamp((
          (strpos('0123456789abcdefghjkmnpqrstvwxyz', substr(right(id, 26), 1, 1)) - 1)::bigint * 35184372088832
        + (strpos('0123456789abcdefghjkmnpqrstvwxyz', substr(right(id, 26), 2, 1)) - 1)::bigint * 1099511627776
        + (strpos('0123456789abcdefghjkmnpqrstvwxyz', substr(right(id, 26), 3, 1)) - 1)::bigint * 34359738368
        + (strpos('0123456789abcdefghjkmnpqrstvwxyz', substr(right(id, 26), 4, 1)) - 1)::bigint * 1073741824
        + (strpos('0123456789abcdefghjkmnpqrstvwxyz', substr(right(id, 26), 5, 1)) - 1)::bigint * 33554432
        + (strpos('0123456789abcdefghjkmnpqrstvwxyz', substr(right(id, 26), 6, 1)) - 1)::bigint * 1048576
        + (strpos('0123456789abcdefghjkmnpqrstvwxyz', substr(right(id, 26), 7, 1)) - 1)::bigint * 32768
        + (strpos('0123456789abcdefghjkmnpqrstvwxyz', substr(right(id, 26), 8, 1)) - 1)::bigint * 1024
        + (strpos('0123456789abcdefghjkmnpqrstvwxyz', substr(right(id, 26), 9, 1)) - 1)::bigint * 32
        + (strpos('0123456789abcdefghjkmnpqrstvwxyz', substr(right(id, 26), 10, 1)) - 1)::bigint
    ) / 1000.0)
$$;

-- ── Append-only ─────────────────────────────────────────────────────────────────────────────────────────────
CREATE FUNCTION ledger.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'ledger.% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;

-- ── Accounts ────────────────────────────────────────────────────────────────────────────────────────────────
CREATE TABLE ledger.account (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('external', 'available', 'escrow', 'revenue')),
    org_id      text COLLATE "C",
    normal_side text NOT NULL GENERATED ALWAYS AS (CASE kind WHEN 'external' THEN 'debit' ELSE 'credit' END) STORED,
    opened_at   timestamptz NOT NULL DEFAULT now(),
    CHECK ((kind IN ('available', 'escrow')) = (org_id IS NOT NULL))
);
CREATE UNIQUE INDEX account_of_organization ON ledger.account (org_id, kind) WHERE org_id IS NOT NULL;
CREATE UNIQUE INDEX account_of_platform ON ledger.account (kind) WHERE org_id IS NULL;
INSERT INTO ledger.account (kind) VALUES ('external'), ('revenue');

-- What an organization has, kept beside the transfers so that it can be guarded; the audit recomputes it. Platform
-- accounts have no balance row: revenue would be one hot row for every charge of everyone.
CREATE TABLE ledger.balance (
    org_id          text COLLATE "C" PRIMARY KEY,
    available_nanos bigint NOT NULL DEFAULT 0 CHECK (available_nanos >= 0),
    escrow_nanos    bigint NOT NULL DEFAULT 0 CHECK (escrow_nanos >= 0),
    changed_at      timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 60);

-- ── Transfers ───────────────────────────────────────────────────────────────────────────────────────────────
-- One row carries both sides, so debits equal credits by construction. The id is derived from the event that
-- causes it (tx_ and txl_ + the hold's ULID), so the primary key is what makes a second charge impossible.
CREATE TABLE ledger.transfer (
    id             text COLLATE "C" NOT NULL,
    id_time        timestamptz NOT NULL,
    kind           text NOT NULL CHECK (kind IN ('top_up', 'grant', 'charge', 'late_charge', 'late_refund')),
    debit_account  bigint NOT NULL REFERENCES ledger.account,
    credit_account bigint NOT NULL REFERENCES ledger.account,
    amount_nanos   bigint NOT NULL CHECK (amount_nanos > 0),
    event_id       text COLLATE "C" NOT NULL,
    posted_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (id, id_time),
    CHECK (debit_account <> credit_account),
    CHECK (id_time = ledger.id_time(id))
) PARTITION BY RANGE (id_time);
CREATE INDEX transfer_posted ON ledger.transfer USING brin (posted_at);

-- ── Usage ───────────────────────────────────────────────────────────────────────────────────────────────────
-- One row per hold that ended (revision 0: settle, void or reap) and one more when a settlement came after the reap
-- (revision 1: late; its amount is the signed difference, its meters are the final ones).
CREATE TABLE ledger.usage_event (
    hold_id              text COLLATE "C" NOT NULL,
    id_time              timestamptz NOT NULL,
    revision             smallint NOT NULL CHECK (revision IN (0, 1)),
    kind                 text NOT NULL CHECK (kind IN ('settle', 'void', 'reap', 'late')),
    org_id               text COLLATE "C" NOT NULL,
    key_id               text COLLATE "C",
    endpoint_id          text COLLATE "C",
    price_card_id        text COLLATE "C",
    route                text,
    streamed             boolean,
    alias                text,
    outcome              text,
    status               integer,
    source               text,
    prompt_tokens        bigint NOT NULL DEFAULT 0 CHECK (prompt_tokens >= 0),
    cached_prompt_tokens bigint NOT NULL DEFAULT 0 CHECK (cached_prompt_tokens >= 0),
    completion_tokens    bigint NOT NULL DEFAULT 0 CHECK (completion_tokens >= 0),
    reasoning_tokens     bigint NOT NULL DEFAULT 0 CHECK (reasoning_tokens >= 0),
    requests             bigint NOT NULL DEFAULT 0 CHECK (requests >= 0),
    images               bigint NOT NULL DEFAULT 0 CHECK (images >= 0),
    audio_seconds        bigint NOT NULL DEFAULT 0 CHECK (audio_seconds >= 0),
    held_nanos           bigint NOT NULL CHECK (held_nanos >= 0),
    amount_nanos         bigint NOT NULL,
    shortfall_nanos      bigint NOT NULL CHECK (shortfall_nanos >= 0),
    started_at           timestamptz,
    settled_at           timestamptz NOT NULL,
    ttft_ms              real,
    total_ms             real,
    epoch                integer NOT NULL,
    shard                smallint NOT NULL,
    seq                  bigint NOT NULL,
    PRIMARY KEY (hold_id, id_time, revision),
    CHECK ((kind = 'late') = (revision = 1)),
    CHECK (amount_nanos >= 0 OR kind = 'late'),
    CHECK (amount_nanos = 0 OR kind <> 'void'),
    CHECK (id_time = ledger.id_time(hold_id))
) PARTITION BY RANGE (id_time);
CREATE INDEX usage_event_of_organization ON ledger.usage_event (org_id, id_time);

-- Row triggers are inherited by every partition, also for statements that name the partition.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.transfer FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.usage_event FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON ledger.transfer EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON ledger.usage_event EXECUTE FUNCTION ledger.refuse_change();

-- Makes the partitions of one UTC month, and says whether any was missing. Attaching takes a weaker lock on the
-- parent than CREATE TABLE … PARTITION OF, so readers and writers of other months go on.
CREATE FUNCTION ledger.ensure_month(month date) RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    first   date := date_trunc('month', month)::date;
    parent  text;
    part    text;
    made    boolean := false;
BEGIN
    IF first < date '2020-01-01' OR first >= date '2200-01-01' THEN
        RAISE EXCEPTION 'no ledger month %', first USING ERRCODE = 'datetime_field_overflow';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('pareta ledger partitions', 0));
    FOREACH parent IN ARRAY ARRAY['transfer', 'usage_event'] LOOP
        part := parent || to_char(first, '_YYYY_MM');
        CONTINUE WHEN to_regclass('ledger.' || part) IS NOT NULL;
        EXECUTE format('CREATE TABLE ledger.%I (LIKE ledger.%I INCLUDING ALL)', part, parent);
        EXECUTE format('CREATE TRIGGER never_truncated BEFORE TRUNCATE ON ledger.%I EXECUTE FUNCTION ledger.refuse_change()', part);
        EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE ON ledger.%I FROM PUBLIC, CURRENT_USER', part);
        EXECUTE format('ALTER TABLE ledger.%I ATTACH PARTITION ledger.%I FOR VALUES FROM (%L) TO (%L)', parent, part,
                       to_char(first, 'YYYY-MM-DD') || ' 00:00:00+00',
                       to_char(first + interval '1 month', 'YYYY-MM-DD') || ' 00:00:00+00');
        made := true;
    END LOOP;
    RETURN made;
END $$;

-- ── Top-ups and grants ──────────────────────────────────────────────────────────────────────────────────────
CREATE TABLE ledger.top_up (
    id              text COLLATE "C" PRIMARY KEY,
    org_id          text COLLATE "C" NOT NULL REFERENCES ledger.balance,
    idempotency_key text NOT NULL,
    amount_nanos    bigint NOT NULL CHECK (amount_nanos > 0),
    note            text NOT NULL DEFAULT '',
    created_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (org_id, idempotency_key)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.top_up FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON ledger.top_up EXECUTE FUNCTION ledger.refuse_change();

-- The generation of the counter in Redis. A new one opens when Redis has lost something (see the guardian).
CREATE TABLE ledger.epoch (
    number    integer PRIMARY KEY CHECK (number > 0),
    opened_at timestamptz NOT NULL DEFAULT now(),
    reason    text NOT NULL
);

-- Credit that Postgres has set aside for Redis to spend. The row, and the move from available to escrow, are
-- committed before Redis hears of it; sending it again is harmless. A cap keeps every sum in Redis exact.
CREATE TABLE ledger.escrow_grant (
    id           text COLLATE "C" PRIMARY KEY,
    org_id       text COLLATE "C" NOT NULL REFERENCES ledger.balance,
    epoch        integer NOT NULL REFERENCES ledger.epoch,
    grant_seq    bigint NOT NULL CHECK (grant_seq > 0),
    amount_nanos bigint NOT NULL CHECK (amount_nanos > 0 AND amount_nanos <= 1125899906842624),
    state        text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'applied')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    attempted_at timestamptz,
    applied_at   timestamptz,
    shard        smallint,
    seq          bigint,
    UNIQUE (org_id, epoch, grant_seq)
);
CREATE INDEX escrow_grant_pending ON ledger.escrow_grant (org_id, grant_seq) WHERE state = 'pending';

CREATE FUNCTION ledger.guard_grant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.id, OLD.org_id, OLD.epoch, OLD.grant_seq, OLD.amount_nanos, OLD.created_at)
       IS DISTINCT FROM (NEW.id, NEW.org_id, NEW.epoch, NEW.grant_seq, NEW.amount_nanos, NEW.created_at)
       OR (OLD.state = 'applied' AND NEW.state <> 'applied') OR (OLD.seq IS NOT NULL AND OLD.seq IS DISTINCT FROM NEW.seq) THEN
        RAISE EXCEPTION 'a grant is never rewritten' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER never_rewritten BEFORE UPDATE ON ledger.escrow_grant FOR EACH ROW EXECUTE FUNCTION ledger.guard_grant();
CREATE TRIGGER never_deleted BEFORE DELETE ON ledger.escrow_grant FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON ledger.escrow_grant EXECUTE FUNCTION ledger.refuse_change();

-- ── Prices ──────────────────────────────────────────────────────────────────────────────────────────────────
-- A range type of our own over text gives an exclusion constraint on (endpoint, time) without the extension btree_gist.
CREATE TYPE ledger.text_range AS RANGE (subtype = text, collation = "C");

CREATE TABLE ledger.price_card (
    id                text COLLATE "C" PRIMARY KEY,
    endpoint_id       text COLLATE "C" NOT NULL,
    rates             jsonb NOT NULL CHECK (jsonb_typeof(rates) = 'object'),
    effective_from_ms bigint NOT NULL CHECK (effective_from_ms >= 0),
    effective_to_ms   bigint CHECK (effective_to_ms > effective_from_ms),
    created_at        timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT price_card_overlap EXCLUDE USING gist (
        ledger.text_range(endpoint_id, endpoint_id, '[]') WITH &&,
        int8range(effective_from_ms, effective_to_ms) WITH &&
    )
);
CREATE INDEX price_card_of_endpoint ON ledger.price_card (endpoint_id, effective_from_ms);

CREATE FUNCTION ledger.guard_price_card() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.id, OLD.endpoint_id, OLD.rates, OLD.effective_from_ms, OLD.created_at)
       IS DISTINCT FROM (NEW.id, NEW.endpoint_id, NEW.rates, NEW.effective_from_ms, NEW.created_at)
       OR (OLD.effective_to_ms IS NOT NULL AND OLD.effective_to_ms IS DISTINCT FROM NEW.effective_to_ms) THEN
        RAISE EXCEPTION 'a price card is only ever closed, never rewritten' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER never_rewritten BEFORE UPDATE ON ledger.price_card FOR EACH ROW EXECUTE FUNCTION ledger.guard_price_card();
CREATE TRIGGER never_deleted BEFORE DELETE ON ledger.price_card FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON ledger.price_card EXECUTE FUNCTION ledger.refuse_change();

-- ── The road from Redis ─────────────────────────────────────────────────────────────────────────────────────
-- How far each shard's stream has been booked. It commits with what it booked. `fence` rises with every takeover.
CREATE TABLE ledger.reconcile_checkpoint (
    shard      smallint PRIMARY KEY,
    epoch      integer NOT NULL DEFAULT 0,
    seq        bigint NOT NULL DEFAULT 0,
    stream_id  text NOT NULL DEFAULT '0-0',
    fence      bigint NOT NULL DEFAULT 0,
    holder     text NOT NULL DEFAULT '',
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- What the reconciler could not book as it stood: loss that was detected, events that contradict the ledger. A row here
-- is a difference in every audit until an operator resolves it.
CREATE TABLE ledger.anomaly (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shard       smallint NOT NULL,
    epoch       integer NOT NULL,
    seq         bigint,
    stream_id   text NOT NULL,
    kind        text NOT NULL,
    detail      jsonb NOT NULL,
    noticed_at  timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    resolution  text
);
CREATE INDEX anomaly_open ON ledger.anomaly (id) WHERE resolved_at IS NULL;

-- ── The proof ───────────────────────────────────────────────────────────────────────────────────────────────
-- A hash chain over blocks of transfers by the time they were posted. Blocks are closed well behind the
-- present, so that no transaction still open can add to one.
CREATE TABLE ledger.audit_block (
    number         bigint PRIMARY KEY CHECK (number > 0),
    from_posted_at timestamptz NOT NULL,
    to_posted_at   timestamptz NOT NULL CHECK (to_posted_at > from_posted_at),
    transfers      bigint NOT NULL CHECK (transfers >= 0),
    amount_nanos   numeric NOT NULL CHECK (amount_nanos >= 0),
    previous_hash  bytea NOT NULL,
    hash           bytea NOT NULL,
    made_at        timestamptz NOT NULL DEFAULT now()
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.audit_block FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON ledger.audit_block EXECUTE FUNCTION ledger.refuse_change();

REVOKE UPDATE, DELETE, TRUNCATE ON ledger.transfer, ledger.usage_event, ledger.top_up, ledger.audit_block FROM PUBLIC, CURRENT_USER;
REVOKE DELETE, TRUNCATE ON ledger.escrow_grant, ledger.price_card FROM PUBLIC, CURRENT_USER;
SELECT ledger.ensure_month((now() AT TIME ZONE 'UTC')::date), ledger.ensure_month((now() AT TIME ZONE 'UTC' + interval '1 month')::date);
