//! PostgreSQL's own functions: which of them only read.
//!
//! `reads.txt` and `writes.txt` are made by `scripts/builtins` from `pg_proc` of the oldest and the newest servers at hand.
//! What is not volatile reads, unless it stands in [`NOT_READS`]; what is volatile does not, unless it stands in
//! [`HARMLESS`]. A function that is in neither file, of a newer server for example, is unknown: no read.

use super::lengths::Lengths;

/// Names of functions that only read, sorted, one a line. A name counts with all its overloads: the worst wins.
const READS: &str = include_str!("reads.txt");
/// Those that write, lock, have effects outside of the database, or ask what only the primary or their session can answer.
const WRITES: &str = include_str!("writes.txt");
/// Keywords that are no function's name unless they are quoted or qualified.
const RESERVED: &str = include_str!("reserved.txt");
/// All other keywords.
const KEYWORDS: &str = include_str!("keywords.txt");

/// Volatile, because their result changes, yet they change nothing: reviewed one by one.
pub const HARMLESS: &[&str] = &[
    // Chance and time.
    "array_sample",
    "array_shuffle",
    "clock_timestamp",
    "gen_random_uuid",
    "random",
    "random_normal",
    "timeofday",
    "uuidv4",
    "uuidv7",
    // They wait, and a replica waits as well.
    "pg_sleep",
    "pg_sleep_for",
    "pg_sleep_until",
    // Methods of TABLESAMPLE.
    "bernoulli",
    "system",
    // Sizes, and what the catalogue or the system says.
    "amvalidate",
    "current_query",
    "pg_collation_actual_version",
    "pg_database_collation_actual_version",
    "pg_database_size",
    "pg_indexes_size",
    "pg_partition_ancestors",
    "pg_partition_tree",
    "pg_relation_size",
    "pg_sequence_last_value",
    "pg_get_sequence_data",
    "pg_table_size",
    "pg_tablespace_size",
    "pg_total_relation_size",
    // What a node says of itself: each answers for itself, as it does when asked directly.
    "pg_blocking_pids",
    "pg_control_checkpoint",
    "pg_control_init",
    "pg_control_recovery",
    "pg_control_system",
    "pg_get_aios",
    "pg_get_backend_memory_contexts",
    "pg_get_loaded_modules",
    "pg_get_multixact_members",
    "pg_get_shmem_allocations",
    "pg_get_shmem_allocations_numa",
    "pg_get_wait_events",
    "pg_get_wal_resource_managers",
    "pg_hba_file_rules",
    "pg_ident_file_mappings",
    "pg_jit_available",
    "pg_last_committed_xact",
    "pg_lock_status",
    "pg_prepared_xact",
    "pg_safe_snapshot_blocking_pids",
    "pg_show_all_file_settings",
    "pg_show_replication_origin_status",
    "pg_stat_get_backend_io",
    "pg_stat_get_backend_wal",
    "pg_stat_get_io",
    "pg_stat_get_recovery_prefetch",
    "pg_stat_get_xact_blocks_fetched",
    "pg_stat_get_xact_blocks_hit",
    "pg_stat_get_xact_function_calls",
    "pg_stat_get_xact_function_self_time",
    "pg_stat_get_xact_function_total_time",
    "pg_stat_get_xact_numscans",
    "pg_stat_get_xact_tuples_deleted",
    "pg_stat_get_xact_tuples_fetched",
    "pg_stat_get_xact_tuples_hot_updated",
    "pg_stat_get_xact_tuples_inserted",
    "pg_stat_get_xact_tuples_newpage_updated",
    "pg_stat_get_xact_tuples_returned",
    "pg_stat_get_xact_tuples_updated",
    "pg_stat_have_stats",
    "pg_xact_commit_timestamp",
    "pg_xact_commit_timestamp_origin",
    "pg_xact_status",
    "txid_status",
];

/// Not volatile, and yet no reads.
pub const NOT_READS: &[&str] = &[
    // They take a transaction number: refused during recovery (55000).
    "pg_current_xact_id",
    "txid_current",
    // Refused during recovery (55000), though they only calculate.
    "pg_walfile_name",
    "pg_walfile_name_offset",
    // They read tables, or call types' functions, that a string names: it may be a view over anything.
    "database_to_xml",
    "database_to_xml_and_xmlschema",
    "database_to_xmlschema",
    "pg_input_error_info",
    "pg_input_is_valid",
    "schema_to_xml",
    "schema_to_xml_and_xmlschema",
    "schema_to_xmlschema",
    "table_to_xml",
    "table_to_xml_and_xmlschema",
    "table_to_xmlschema",
    // What their own session holds.
    "pg_cursor",
    "pg_listening_channels",
    "pg_prepared_statement",
    // They are for the primary alone, whatever volatility some version gives them.
    "pg_is_in_recovery",
];

/// Relations of PostgreSQL's own that show what their session holds: a replica's session holds nothing of it.
pub(super) const SESSION_VIEWS: [&[u8]; 2] = [b"pg_cursors", b"pg_prepared_statements"];

/// Relations of PostgreSQL's own that show what their server holds, and whose names do not begin as those of
/// [`shows_the_server`].
const SERVER_VIEWS: [&[u8]; 3] = [b"pg_locks", b"pg_prepared_xacts", b"pg_replication_slots"];

/// Whether a relation of this name shows what goes on at its server: who has one address only means the primary.
pub(super) fn shows_the_server(name: &[u8]) -> bool {
    let begins = |with: &[u8]| name.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    begins(b"pg_stat_") || begins(b"pg_statio_") || SERVER_VIEWS.iter().any(|view| view.eq_ignore_ascii_case(name))
}

/// What a name is, as bits: it may be several.
const IS_READ: u32 = 1;
const IS_WRITE: u32 = 2;
const IS_RESERVED: u32 = 4;
const IS_KEYWORD: u32 = 8;

const LISTS: [(&str, u32); 4] =
    [(READS, IS_READ), (WRITES, IS_WRITE), (RESERVED, IS_RESERVED | IS_KEYWORD), (KEYWORDS, IS_KEYWORD)];

/// Slots of the table of names: more than twice as many as there are names.
const SLOTS: usize = 8192;

/// A table of all names, made by the compiler: where each stands (list, start and length), and what it is.
static TABLE: [u32; SLOTS] = {
    let mut table = [0u32; SLOTS];
    let mut list = 0;
    while list < LISTS.len() {
        let text = LISTS[list].0.as_bytes();
        assert!(text.len() < 1 << 16, "offsets of names are 16 bits wide");
        let (mut start, mut end) = (0, 0);
        while end < text.len() {
            if text[end] == b'\n' {
                let name = text.split_at(end).0.split_at(start).1;
                let mut slot = hash(name);
                while table[slot] != 0 && !equal(entry(table[slot]), name) {
                    slot = (slot + 1) % SLOTS;
                }
                if table[slot] == 0 {
                    assert!(name.len() < 64, "lengths of names are 6 bits wide");
                    #[allow(clippy::cast_possible_truncation, reason = "asserted above")]
                    let place = (start as u32) << 16 | (name.len() as u32) << 8 | (list as u32) << 4;
                    table[slot] = place;
                }
                table[slot] |= LISTS[list].1;
                start = end + 1;
            }
            end += 1;
        }
        list += 1;
    }
    table
};

/// FNV-1a, of a name in lower case.
const fn hash(name: &[u8]) -> usize {
    let mut hash = 0x811c_9dc5_u32;
    let mut at = 0;
    while at < name.len() {
        hash = (hash ^ name[at].to_ascii_lowercase() as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    (hash ^ (hash >> 15)) as usize % SLOTS
}

/// The name that an entry of the table is for.
const fn entry(entry: u32) -> &'static [u8] {
    let (start, len, list) = ((entry >> 16) as usize, (entry >> 8 & 63) as usize, (entry >> 4 & 3) as usize);
    LISTS[list].0.as_bytes().split_at(start).1.split_at(len).0
}

const fn equal(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// What is known of a name without any database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known(u32);

impl Known {
    /// Looks up a name, in lower case.
    pub(super) fn of(name: &[u8]) -> Self {
        let mut slot = hash(name);
        while TABLE[slot] != 0 {
            if entry(TABLE[slot]) == name {
                return Self(TABLE[slot]);
            }
            slot = (slot + 1) % SLOTS;
        }
        Self(0)
    }

    /// Looks up an unquoted word, as written.
    pub(super) fn of_word(word: &[u8]) -> Self {
        let mut slot = hash(word);
        while TABLE[slot] != 0 {
            if entry(TABLE[slot]).eq_ignore_ascii_case(word) {
                return Self(TABLE[slot]);
            }
            slot = (slot + 1) % SLOTS;
        }
        Self(0)
    }

    /// A function of PostgreSQL's own that, with all its overloads, only reads.
    pub(super) fn reads(self) -> bool {
        self.0 & IS_READ != 0
    }

    /// A function that is known not to be a read.
    pub(super) fn writes(self) -> bool {
        self.0 & IS_WRITE != 0
    }

    /// A keyword that no unquoted call begins with.
    pub(super) fn reserved(self) -> bool {
        self.0 & IS_RESERVED != 0
    }

    /// Any keyword.
    pub(super) fn keyword(self) -> bool {
        self.0 & IS_KEYWORD != 0
    }
}

/// For attribute notation: which names may be one that writes.
pub(super) static WRITES_LENGTHS: Lengths = Lengths::of_lines(WRITES);

/// Whether a function of PostgreSQL's own, with all its overloads, only reads. The name is in lower case.
pub fn reads(name: &[u8]) -> bool {
    Known::of(name).reads()
}

/// Whether it is known not to be a read. The name is in lower case.
pub fn writes(name: &[u8]) -> bool {
    WRITES_LENGTHS.may_have(name) && Known::of(name).writes()
}

/// The names of all that are known not to be reads.
pub fn all_writes() -> impl Iterator<Item = &'static str> {
    WRITES.lines()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_and_none_is_both() {
        for (ours, theirs, names) in
            [(reads as fn(&[u8]) -> bool, writes as fn(&[u8]) -> bool, READS), (writes, reads, WRITES)]
        {
            assert!(names.lines().is_sorted(), "scripts/builtins sorts by bytes");
            for name in names.lines() {
                assert!(ours(name.as_bytes()) && !theirs(name.as_bytes()), "{name}");
                assert!(!ours(format!("{name}_").as_bytes()) || names.contains(&format!("{name}_\n")), "{name}_");
            }
        }
        for name in ["", "a", "zzz", "ABS", "\n", "x\n", "abs\nabstime", "\u{fc}"] {
            assert!(!reads(name.as_bytes()) && !writes(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn the_lists_follow_from_the_review() {
        assert!(HARMLESS.iter().all(|name| reads(name.as_bytes())));
        assert!(NOT_READS.iter().all(|name| writes(name.as_bytes())));
        for name in
            ["nextval", "setval", "currval", "lo_get", "pg_advisory_lock", "pg_notify", "set_config", "txid_current"]
        {
            assert!(writes(name.as_bytes()), "{name}");
        }
        assert!(Known::of(b"select").reserved() && !Known::of(b"over").reserved() && Known::of(b"over").keyword());
        assert!(Known::of_word(b"LeFt").reads() && !Known::of(b"LeFt").reads());
        assert!(Known::of(b"left").reads() && Known::of(b"left").keyword() && !Known::of(b"lower").keyword());
        for name in ["count", "now", "lower", "generate_series", "has_table_privilege", "random", "version"] {
            assert!(reads(name.as_bytes()), "{name}");
        }
    }
}
