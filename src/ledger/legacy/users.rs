//! What in a database uses what `drop-legacy` removes: queries that name it. What only might use it is
//! named too: nobody is told afterwards. Pure.

use super::facts::KEYS;

/// What the list of [`OF_PROCESSES`] is.
pub(super) const PROCESSES: &str = "users of workflow_processes (drop or change them)";

/// What the list of [`of_facts`] is.
pub(super) const FACTS: &str = "users of the facts in sessions.metadata (drop or change them)";

/// Whatever depends on the table or its row's type and is no part of it; functions that name it, since
/// the database doesn't know what the text of a function depends on; tables that inherit from it.
pub(super) const OF_PROCESSES: &str = r"
    SELECT DISTINCT coalesce('view ' || v.oid::regclass, pg_describe_object(d.classid, d.objid, d.objsubid)) AS name
    FROM pg_class t
    LEFT JOIN pg_type a ON a.typelem = t.reltype AND a.typelem <> 0
    JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
                     OR d.refclassid = 'pg_type'::regclass AND d.refobjid IN (t.reltype, a.oid)
    LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
    LEFT JOIN pg_class v ON v.oid = r.ev_class AND v.relkind IN ('v', 'm')
    LEFT JOIN pg_constraint k ON d.classid = 'pg_constraint'::regclass AND d.objid = k.oid
    LEFT JOIN pg_policy p ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
    LEFT JOIN pg_trigger g ON d.classid = 'pg_trigger'::regclass AND d.objid = g.oid
    LEFT JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
    WHERE t.oid = to_regclass('workflow_processes')
      -- Its own indexes, constraints, triggers, policies, defaults, sequences and types go with it.
      AND (d.deptype = 'n' OR d.classid = 'pg_publication_rel'::regclass)
      AND r.ev_class IS DISTINCT FROM t.oid AND k.conrelid IS DISTINCT FROM t.oid
      AND p.polrelid IS DISTINCT FROM t.oid AND g.tgrelid IS DISTINCT FROM t.oid
      AND f.adrelid IS DISTINCT FROM t.oid
      -- Those of a foreign key, which is named itself.
      AND NOT coalesce(g.tgisinternal, false)
    UNION SELECT 'function ' || p.oid::regprocedure FROM pg_proc p
    JOIN pg_namespace n ON n.oid = p.pronamespace AND n.nspname NOT IN ('pg_catalog', 'information_schema')
    WHERE p.prosrc ~* '\mworkflow_processes\M'
    UNION SELECT 'table ' || inhrelid::regclass FROM pg_inherits
    WHERE inhparent = to_regclass('workflow_processes')";

/// Views on sessions, and views on those; policies, triggers, checks, indexes and the like of sessions,
/// that name one of the facts in a string, whether as a key, in a path or a jsonpath, or that take
/// objects apart. Functions that speak of metadata and of sessions (or stand on them), and name a fact
/// in any way: their text may hold anything, other texts too.
pub(super) fn of_facts() -> String {
    let words = format!(r"'\m({})\M'", KEYS.join("|"));
    let says = |text: &str| {
        format!(
            r"({text} ~* '\mjsonb?_(to_record|to_recordset|populate_record|populate_recordset|each|each_text|object_keys)\M'
              OR EXISTS (SELECT FROM regexp_matches({text}, '''((?:[^'']|'''')*)''', 'g') AS s (literal)
                         WHERE s.literal[1] ~ {words}))"
        )
    };
    format!(
        r"WITH RECURSIVE sessions_table AS (SELECT to_regclass('sessions')::oid AS oid),
         rules AS (
             SELECT r.oid, r.ev_class FROM pg_rewrite r
             JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
             JOIN sessions_table t ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
             UNION SELECT r.oid, r.ev_class FROM rules b
             JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = b.ev_class
             JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
         )
         SELECT CASE c.relkind WHEN 'r' THEN 'rule on ' ELSE 'view ' END || c.oid::regclass AS name
         FROM rules r JOIN pg_class c ON c.oid = r.ev_class WHERE {rule}
         UNION SELECT 'function ' || p.oid::regprocedure FROM pg_proc p
         JOIN pg_namespace n ON n.oid = p.pronamespace AND n.nspname NOT IN ('pg_catalog', 'information_schema')
         CROSS JOIN LATERAL (SELECT concat(CASE WHEN p.prosqlbody IS NOT NULL THEN pg_get_function_sqlbody(p.oid) END,
                                           p.prosrc)) b (body)
         WHERE p.proname NOT LIKE 'runledger\_%' AND b.body ~ {words} AND b.body ~* '\mmetadata\M'
           AND (b.body ~* '\msessions\M'
                OR EXISTS (SELECT FROM pg_trigger g JOIN sessions_table t ON g.tgrelid = t.oid WHERE g.tgfoid = p.oid)
                OR EXISTS (SELECT FROM pg_class c JOIN sessions_table t ON c.oid = t.oid
                           WHERE c.reltype = p.prorettype OR c.reltype = ANY (p.proargtypes)))
         UNION SELECT 'policy ' || polname || ' on ' || polrelid::regclass FROM pg_policy p
         WHERE (p.polrelid = (SELECT oid FROM sessions_table)
                OR EXISTS (SELECT FROM pg_depend d JOIN sessions_table t ON d.refobjid = t.oid
                           WHERE d.classid = 'pg_policy'::regclass AND d.objid = p.oid)) AND {policy}
         UNION SELECT 'trigger ' || g.tgname || ' on ' || g.tgrelid::regclass FROM pg_trigger g
         JOIN sessions_table t ON g.tgrelid = t.oid WHERE NOT g.tgisinternal AND {trigger}
         UNION SELECT 'constraint ' || k.conname || ' of ' || k.conrelid::regclass FROM pg_constraint k
         JOIN sessions_table t ON k.conrelid = t.oid WHERE {constraint}
         UNION SELECT 'column ' || a.attname || ' of ' || a.attrelid::regclass FROM pg_attrdef f
         JOIN sessions_table t ON f.adrelid = t.oid
         JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum AND a.attgenerated <> '' WHERE {generated}
         UNION SELECT 'index ' || i.indexrelid::regclass FROM pg_index i
         JOIN sessions_table t ON i.indrelid = t.oid WHERE {index}
         UNION SELECT 'statistics ' || x.stxname FROM pg_statistic_ext x
         JOIN sessions_table t ON x.stxrelid = t.oid WHERE {statistics}",
        rule = says("pg_get_ruledef(r.oid)"),
        policy = says(
            "concat_ws(' ', pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))"
        ),
        trigger = says("pg_get_triggerdef(g.oid)"),
        constraint = says("pg_get_constraintdef(k.oid)"),
        generated = says("pg_get_expr(f.adbin, f.adrelid)"),
        index = says("pg_get_indexdef(i.indexrelid)"),
        statistics = says("pg_get_statisticsobjdef(x.oid)"),
    )
}
