-- What in a database may do more than read: names of its functions, and of relations, types and operators behind which such
-- functions hide. Rows of (kind, schema, name, suspect); src/routing/catalogue.rs has the kinds.
-- $1: names of functions, with or without schema, that are trusted whatever they are declared to be
-- $2: names of PostgreSQL's own functions that are no reads; $3: of those that are volatile and yet harmless
WITH RECURSIVE
spaces AS (
    SELECT oid, nspname::text AS name FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_(toast|temp)'
),
-- Functions of the database's own: whatever initdb did not put into pg_catalog.
own AS (
    SELECT p.oid, s.name AS schema, p.proname::text AS name, p.provolatile, p.prosupport,
           2281 = ANY (p.proargtypes::oid[]) AS internal
    FROM pg_catalog.pg_proc p JOIN spaces s ON s.oid = p.pronamespace
    WHERE (p.oid >= 16384 OR s.name <> 'pg_catalog') AND p.prorettype NOT IN (2279, 3838)
),
built_in AS (
    SELECT p.oid FROM pg_catalog.pg_proc p
    WHERE p.oid < 16384 AND p.pronamespace = 11
      AND (p.proname::text = ANY ($2::text[]) OR (p.provolatile = 'v' AND p.proname::text <> ALL ($3::text[])))
),
-- PostgreSQL notes no dependency on what is built in: for that, stored expressions have to be looked into.
trees (class, object, tree) AS (
    SELECT 1259::oid, r.ev_class, r.ev_action::text FROM pg_catalog.pg_rewrite r
    JOIN pg_catalog.pg_class c ON c.oid = r.ev_class WHERE r.ev_type = '1' AND c.relkind = 'v' AND r.ev_class >= 16384
    UNION ALL
    SELECT 1259, polrelid, polqual::text FROM pg_catalog.pg_policy WHERE polcmd IN ('r', '*')
    UNION ALL
    SELECT 1247, contypid, conbin::text FROM pg_catalog.pg_constraint WHERE contypid <> 0
    UNION ALL
    SELECT 1255, p.oid, p.proargdefaults::text FROM pg_catalog.pg_proc p JOIN own USING (oid)
    WHERE p.proargdefaults IS NOT NULL
),
roots (class, object) AS (
    SELECT 1255::oid, oid FROM own
    WHERE provolatile = 'v' AND name <> ALL ($1::text[]) AND schema || '.' || name <> ALL ($1::text[])
    UNION ALL
    SELECT class, object FROM trees
    -- A view with a locking clause; a call, by whatever notation.
    WHERE tree LIKE '%{ROWMARKCLAUSE%' OR EXISTS (
        SELECT FROM pg_catalog.regexp_matches(tree, ':(?:funcid|opfuncid|aggfnoid|winfnoid) (\d+)', 'g') AS found (ids)
        JOIN built_in b ON b.oid = ids[1]::oid)
    UNION ALL
    SELECT 1255, a.aggfnoid FROM pg_catalog.pg_aggregate a
    JOIN built_in b ON b.oid IN (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, a.aggmtransfn,
                                 a.aggminvtransfn, a.aggmfinalfn)
    WHERE a.aggfnoid >= 16384
    UNION ALL
    SELECT 2617, o.oid FROM pg_catalog.pg_operator o JOIN built_in b ON b.oid = o.oprcode WHERE o.oid >= 16384
    UNION ALL
    -- No replica has the contents of unlogged tables, nor needs it to reach what a foreign table stands for.
    SELECT 1259, oid FROM pg_catalog.pg_class
    WHERE (relpersistence = 'u' OR relkind = 'f') AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
),
-- Whatever is made of something suspect is suspect itself.
suspects (class, object) AS (
    SELECT class, object FROM roots
    UNION
    SELECT e.class, e.object FROM suspects s CROSS JOIN LATERAL (
        -- Functions, types, relations, rules, policies, casts, operators, constraints, operator classes and families.
        SELECT d.classid AS class, d.objid AS object FROM pg_catalog.pg_depend d
        WHERE d.refclassid = s.class AND d.refobjid = s.object AND d.deptype <> 'e'
          AND d.classid IN (1255, 1247, 1259, 2618, 3256, 2605, 2617, 2606, 2616, 2753, 2602, 2603)
          -- What works on the insides of the server cannot be called, and its volatility is seldom declared with care: it
          -- tells something of an aggregate that it is a part of, and nothing of a type or a function that it supports.
          AND NOT (s.class = 1255 AND EXISTS (
              SELECT FROM own f WHERE f.oid = s.object AND f.internal AND (
                  d.classid <> 1255 OR EXISTS (SELECT FROM own g WHERE g.oid = d.objid AND g.prosupport = f.oid))))
        UNION ALL
        SELECT 1259, r.ev_class FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
        WHERE s.class = 2618 AND r.oid = s.object AND r.ev_type = '1' AND c.relkind = 'v'
        UNION ALL
        SELECT 1259, polrelid FROM pg_catalog.pg_policy
        WHERE s.class = 3256 AND oid = s.object AND polcmd IN ('r', '*')
        UNION ALL
        SELECT 1259, indrelid FROM pg_catalog.pg_index WHERE s.class = 1259 AND indexrelid = s.object
        UNION ALL
        SELECT 1259, inhparent FROM pg_catalog.pg_inherits WHERE s.class = 1259 AND inhrelid = s.object
        UNION ALL
        SELECT 1247, reltype FROM pg_catalog.pg_class WHERE s.class = 1259 AND oid = s.object AND reltype <> 0
        UNION ALL
        SELECT 1247, t.oid FROM pg_catalog.pg_cast c JOIN pg_catalog.pg_type t ON t.oid IN (c.castsource, c.casttarget)
        WHERE s.class = 2605 AND c.oid = s.object AND t.oid >= 16384
        UNION ALL
        SELECT 1247, contypid FROM pg_catalog.pg_constraint WHERE s.class = 2606 AND oid = s.object AND contypid <> 0
        UNION ALL
        SELECT 1247, t.oid FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_type t ON t.oid IN (o.oprleft, o.oprright)
        WHERE s.class = 2617 AND o.oid = s.object AND t.oid >= 16384
        UNION ALL
        SELECT 2616, o.oid FROM pg_catalog.pg_amproc a JOIN pg_catalog.pg_opclass o ON o.opcfamily = a.amprocfamily
        WHERE s.class = 2603 AND a.oid = s.object
        UNION ALL
        SELECT 1247, opcintype FROM pg_catalog.pg_opclass
        WHERE s.class = 2616 AND oid = s.object AND opcintype >= 16384
    ) e
)
SELECT 'function' AS kind, schema, name, pg_catalog.bool_or(s.object IS NOT NULL) AS suspect
FROM own LEFT JOIN suspects s ON s.class = 1255 AND s.object = own.oid GROUP BY schema, own.name
UNION ALL
SELECT 'object', p.name, c.relname, true
FROM suspects s JOIN pg_catalog.pg_class c ON c.oid = s.object JOIN spaces p ON p.oid = c.relnamespace
WHERE s.class = 1259 AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
UNION ALL
SELECT 'object', p.name, t.typname, true
FROM suspects s JOIN pg_catalog.pg_type t ON t.oid = s.object JOIN spaces p ON p.oid = t.typnamespace WHERE s.class = 1247
UNION ALL
SELECT 'operator', p.name, o.oprname, true
FROM suspects s JOIN pg_catalog.pg_operator o ON o.oid = s.object JOIN spaces p ON p.oid = o.oprnamespace
WHERE s.class = 2617
UNION ALL
-- Between types that are built in, a cast needs no name, and these operators are in IN, LIKE, JOIN USING, ORDER BY and others.
SELECT 'everything', '', '', true FROM suspects s JOIN pg_catalog.pg_cast c ON c.oid = s.object
WHERE s.class = 2605 AND c.castsource < 16384 AND c.casttarget < 16384
UNION ALL
SELECT 'everything', '', '', true FROM suspects s JOIN pg_catalog.pg_operator o ON o.oid = s.object
WHERE s.class = 2617 AND o.oprleft < 16384 AND o.oprright < 16384
  AND o.oprname IN ('=', '<>', '<', '<=', '>', '>=', '~', '!~', '~~', '!~~', '~~*', '!~~*', '+', '-')
