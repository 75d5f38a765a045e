-- Grants of an organization and epoch that are not numbered 1, 2, 3…
SELECT
    org_id || ' epoch ' || epoch AS subject, '1 to ' || count(*) AS expected, min(grant_seq) || ' to ' || max(grant_seq) AS found,
    'the grants of an organization are not numbered without gap' AS note
FROM ledger.escrow_grant
GROUP BY org_id, epoch
HAVING min(grant_seq) <> 1 OR max(grant_seq) <> count(*)
