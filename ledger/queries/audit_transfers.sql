-- Transfers between accounts that their kind does not allow, or whose id is not that of their event.
SELECT
    t.id AS subject,
    CASE t.kind
        WHEN 'top_up' THEN 'external > available'
        WHEN 'grant' THEN 'available > escrow of one organization'
        WHEN 'return' THEN 'escrow > available of one organization'
        WHEN 'freeze' THEN 'escrow or available > frozen of one organization'
        WHEN 'release' THEN 'frozen > available of one organization'
        WHEN 'late_refund' THEN 'revenue > escrow or available'
        ELSE 'escrow or frozen > revenue' END || ', id of its event' AS expected,
    coalesce(d.kind, '?') || ' > ' || coalesce(c.kind, '?') || ', event ' || t.event_id AS found,
    'transfer of kind ' || t.kind || ' moves money where it must not' AS note
FROM ledger.transfer AS t
LEFT JOIN ledger.account AS d ON d.id = t.debit_account
LEFT JOIN ledger.account AS c ON c.id = t.credit_account
WHERE (CASE t.kind
           WHEN 'top_up' THEN d.kind = 'external' AND c.kind = 'available'
           WHEN 'grant' THEN d.kind = 'available' AND c.kind = 'escrow' AND d.org_id = c.org_id
           WHEN 'return' THEN d.kind = 'escrow' AND c.kind = 'available' AND d.org_id = c.org_id
           WHEN 'freeze' THEN d.kind IN ('escrow', 'available') AND c.kind = 'frozen' AND d.org_id = c.org_id
           WHEN 'release' THEN d.kind = 'frozen' AND c.kind = 'available' AND d.org_id = c.org_id
           WHEN 'late_refund' THEN d.kind = 'revenue' AND c.kind IN ('escrow', 'available')
           ELSE d.kind IN ('escrow', 'frozen') AND c.kind = 'revenue' END) IS NOT TRUE
   OR t.id <> CASE WHEN t.kind LIKE 'late%' THEN 'txl_' WHEN starts_with(t.event_id, 'covl_') THEN 'txcl_'
                   WHEN starts_with(t.event_id, 'cov_') THEN 'txc_' ELSE 'tx_' END || right(t.event_id, 26)
