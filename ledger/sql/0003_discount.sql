-- Discounts of organizations, by time like price cards: at any moment at most one for all endpoints of an organization and
-- at most one for each of them. A discount that was used for a charge must stay provable, so it is only ever closed.
CREATE TABLE ledger.discount (
    id                text COLLATE "C" PRIMARY KEY,
    org_id            text COLLATE "C" NOT NULL,
    endpoint_id       text COLLATE "C" CHECK (endpoint_id <> ''), -- NULL: all that have none of their own
    bps               integer NOT NULL CHECK (bps BETWEEN 0 AND 10000),
    effective_from_ms bigint NOT NULL CHECK (effective_from_ms >= 0),
    effective_to_ms   bigint CHECK (effective_to_ms > effective_from_ms),
    created_at        timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT discount_overlap EXCLUDE USING gist (
        ledger.text_range(org_id, org_id, '[]') WITH &&,
        ledger.text_range(coalesce(endpoint_id, ''), coalesce(endpoint_id, ''), '[]') WITH &&,
        int8range(effective_from_ms, effective_to_ms) WITH &&
    )
);
CREATE INDEX discount_of_organization ON ledger.discount (org_id, endpoint_id, effective_from_ms);

CREATE FUNCTION ledger.guard_discount() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.id, OLD.org_id, OLD.endpoint_id, OLD.bps, OLD.effective_from_ms, OLD.created_at)
       IS DISTINCT FROM (NEW.id, NEW.org_id, NEW.endpoint_id, NEW.bps, NEW.effective_from_ms, NEW.created_at)
       OR (OLD.effective_to_ms IS NOT NULL AND OLD.effective_to_ms IS DISTINCT FROM NEW.effective_to_ms) THEN
        RAISE EXCEPTION 'a discount is only ever closed, never rewritten' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER never_rewritten BEFORE UPDATE ON ledger.discount FOR EACH ROW EXECUTE FUNCTION ledger.guard_discount();
CREATE TRIGGER never_deleted BEFORE DELETE ON ledger.discount FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON ledger.discount EXECUTE FUNCTION ledger.refuse_change();
REVOKE DELETE, TRUNCATE ON ledger.discount FROM PUBLIC, CURRENT_USER;
