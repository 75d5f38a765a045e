-- How much was looked at.
SELECT
    (SELECT count(*) FROM ledger.balance) AS organizations,
    (SELECT count(*) FROM ledger.top_up) AS top_ups,
    (SELECT count(*) FROM ledger.escrow_grant) AS grants,
    (SELECT count(*) FROM ledger.transfer) AS transfers,
    u.events AS usage_events,
    (SELECT coalesce(sum(amount_nanos), 0) FROM ledger.top_up) AS paid_in_nanos,
    u.charged AS charged_nanos,
    u.shortfall AS shortfall_nanos,
    u.recovered AS recovered_events,
    (SELECT coalesce(sum(frozen_nanos), 0) FROM ledger.balance) AS frozen_nanos
FROM (
    SELECT count(*) AS events, count(*) FILTER (WHERE recovered) AS recovered, coalesce(sum(amount_nanos), 0) AS charged,
        -- A correction restates the whole shortfall of its hold.
        coalesce(sum(shortfall_nanos) FILTER (WHERE revision = 1 OR NOT EXISTS (
            SELECT 1 FROM ledger.usage_event AS l
            WHERE l.hold_id = e.hold_id AND l.id_time = e.id_time AND l.revision = 1)), 0) AS shortfall
    FROM ledger.usage_event AS e
) AS u
