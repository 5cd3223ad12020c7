//! What in one database may do more than read: the answers that [`crate::sql::access`] needs of it.
//!
//! [`QUERY`] asks for it on any server from PostgreSQL 12 on, the primary or a replica, as any user. It starts from what is
//! declared to be volatile, unlogged or foreign, and follows what is made of it: an aggregate of a volatile function, an
//! operator, a type with such an operator, a table with such a column or policy, a view over all that. STABLE and IMMUTABLE
//! are believed, and so is what cannot be called from SQL. A temporary object is its session's affair.

use crate::sql::reads::{Lengths, Objects, Trust, builtins};
use std::collections::hash_map::Entry as Slot;

/// Asks a database, with [`parameters`]; rows are (kind, schema, name, suspect), the first three of type text. Ask it with
/// `jit = off`: the planner's guess of its cost is so far off that compiling would take seconds.
pub const QUERY: &str = include_str!("catalogue.sql");

/// The parameters of [`QUERY`], each an array of text. `allowed` names functions, with or without their schema, that an
/// operator vouches for: they only read, whatever they are declared to be.
pub fn parameters<'a>(allowed: impl IntoIterator<Item = &'a str>) -> [Vec<&'a str>; 3] {
    [allowed.into_iter().collect(), builtins::all_writes().collect(), builtins::HARMLESS.to_vec()]
}

/// What a row of the answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// All functions of a name in a schema; suspect if one of them is.
    Function,
    /// A suspect relation or type.
    Object,
    /// A suspect operator.
    Operator,
    /// Something suspect that no text need name: nothing can be proven of any.
    Everything,
}

impl Kind {
    /// A kind that nobody knows is the worst.
    fn of(name: &str) -> Self {
        match name {
            "function" => Self::Function,
            "object" => Self::Object,
            "operator" => Self::Operator,
            _ => Self::Everything,
        }
    }
}

/// The functions of one name: for each schema whether one is suspect.
#[derive(Debug, Default, PartialEq, Eq)]
struct Functions {
    suspect: bool,
    schemas: Vec<(Box<[u8]>, bool)>,
}

/// What is known of one database at one time; immutable.
#[derive(Debug, PartialEq, Eq)]
pub struct Catalogue {
    functions: foldhash::HashMap<Box<[u8]>, Functions>,
    /// Suspect relations and types, with their schemas.
    objects: foldhash::HashMap<Box<[u8]>, Vec<Box<[u8]>>>,
    operators: Vec<Box<[u8]>>,
    lengths: Lengths,
    /// There is a suspect name that is not ASCII: in another encoding, or folded by another locale, it has other bytes.
    strange: bool,
    everything: bool,
    bare: bool,
}

impl Catalogue {
    /// Takes the rows of the answer to [`QUERY`].
    pub fn from_rows<'a>(rows: impl IntoIterator<Item = (&'a str, &'a str, &'a str, bool)>) -> Self {
        let mut new = Self {
            functions: foldhash::HashMap::default(),
            objects: foldhash::HashMap::default(),
            operators: Vec::new(),
            lengths: Lengths::NONE,
            strange: false,
            everything: false,
            bare: false,
        };
        for (kind, schema, name, suspect) in rows {
            new.add(Kind::of(kind), schema.as_bytes(), name.as_bytes(), suspect);
        }
        if new.strange || new.everything {
            new.lengths = Lengths::ALL;
        }
        new.bare = !new.strange
            && !new.everything
            && new.operators.is_empty()
            && new.objects.keys().all(|name| name.starts_with(b"pg_"));
        new
    }

    fn add(&mut self, kind: Kind, schema: &[u8], name: &[u8], suspect: bool) {
        match kind {
            Kind::Function => {
                let functions = self.functions.entry(name.into()).or_default();
                functions.suspect |= suspect;
                functions.schemas.push((schema.into(), suspect));
                if !suspect {
                    return;
                }
            }
            Kind::Object => match self.objects.entry(name.into()) {
                Slot::Occupied(mut slot) => {
                    if !slot.get().iter().any(|known| **known == *schema) {
                        slot.get_mut().push(schema.into());
                    }
                }
                Slot::Vacant(slot) => {
                    slot.insert(vec![schema.into()]);
                }
            },
            Kind::Operator => return self.operators.push(name.into()),
            Kind::Everything => {
                self.everything = true;
                return;
            }
        }
        self.lengths.add(name);
        self.strange |= !name.is_ascii();
    }

    /// How many names of functions it knows.
    pub fn functions(&self) -> usize {
        self.functions.len()
    }

    /// How many names it suspects, of functions and of all else.
    pub fn suspected(&self) -> usize {
        self.functions.values().filter(|f| f.suspect).count() + self.objects.len() + self.operators.len()
    }

    /// Whether it suspects everything, as no text would show what it has to fear.
    pub fn suspects_everything(&self) -> bool {
        self.everything
    }
}

impl Objects for Catalogue {
    fn lengths(&self) -> &Lengths {
        &self.lengths
    }

    fn suspects(&self, schema: Option<&[u8]>, name: &[u8]) -> bool {
        if self.everything || (self.strange && !name.is_ascii()) {
            return true;
        }
        let Some(schemas) = self.objects.get(name) else { return false };
        schema.is_none_or(|schema| !schema.is_ascii() || schemas.iter().any(|known| **known == *schema))
    }

    fn function(&self, schema: Option<&[u8]>, name: &[u8]) -> Trust {
        if self.everything || (self.strange && !name.is_ascii()) {
            return Trust::Suspect;
        }
        let Some(functions) = self.functions.get(name) else { return Trust::Unknown };
        let suspect = match schema {
            None => Some(functions.suspect),
            Some(schema) => functions.schemas.iter().find(|(known, _)| **known == *schema).map(|(_, suspect)| *suspect),
        };
        match suspect {
            None => Trust::Unknown,
            Some(true) => Trust::Suspect,
            Some(false) => Trust::Plain,
        }
    }

    fn operator(&self, token: &[u8]) -> bool {
        // The server may take a token for several operators: `<!>-` for `<!>` and `-`.
        self.operators.iter().any(|known| token.windows(known.len()).any(|part| *part == **known))
    }

    fn is_bare(&self) -> bool {
        self.bare
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::access;
    use crate::sql::reads::Run;

    const ROWS: [(&str, &str, &str, bool); 9] = [
        ("function", "public", "area", false),
        ("function", "audit", "area", true),
        ("function", "public", "log_it", true),
        ("function", "geo", "distance", false),
        ("object", "public", "log_view", true),
        ("object", "audit", "totals", true),
        ("object", "public", "Odd", true),
        ("operator", "public", "<!>", true),
        ("operator", "public", "@@@", true),
    ];

    #[test]
    fn a_name_without_a_schema_is_as_its_worst_and_one_with_a_schema_as_itself() {
        let catalogue = Catalogue::from_rows(ROWS);
        for (text, reads) in [
            ("select area(1)", false),
            ("select public.area(1)", true),
            ("select audit.area(1)", false),
            ("select other.area(1)", false),
            ("select distance(1), geo.distance(1)", true),
            ("select public.distance(1)", false),
            ("select * from log_view", false),
            ("select * from public.log_view", false),
            ("select * from other.log_view", true),
            ("select * from totals", false),
            ("select * from public.totals", true),
            ("select * from db.audit.totals", false),
            ("select * from odd", true),
            ("select * from \"Odd\"", false),
            ("select x.log_it from x", false),
            ("select x.area from x", false),
            ("select 1 @@@ 2", false),
            ("select 1 @@@- 2", false),
            ("select 1 @@ 2", true),
        ] {
            assert_eq!(access(text.as_bytes(), true, &catalogue).run == Run::Read, reads, "{text}");
        }
        assert_eq!((catalogue.functions(), catalogue.suspected()), (3, 7));
    }

    #[test]
    fn what_no_text_would_name_spoils_all_of_them() {
        for row in [("everything", "", "", true), ("a kind of a later version", "", "", false)] {
            let catalogue = Catalogue::from_rows(ROWS.into_iter().chain([row]));
            assert!(catalogue.suspects_everything());
            for text in ["select 1", "table t", "select lower('x')", "copy t to stdout"] {
                assert!(matches!(access(text.as_bytes(), true, &catalogue).run, Run::Write(_)), "{text}");
            }
        }
    }

    #[test]
    fn a_suspect_name_that_is_not_ascii_makes_all_such_names_suspect() {
        let catalogue = Catalogue::from_rows([("object", "public", "gr\u{f6}\u{df}e", true)]);
        for (text, reads) in [
            (&b"select * from gr\xf6\xdfe"[..], false),
            (b"select * from \"GR\xc3\x96\"", false),
            (b"select * from grosse", true),
            (b"select '\xf6'", true),
        ] {
            assert_eq!(access(text, true, &catalogue).run == Run::Read, reads, "{}", text.escape_ascii());
        }
    }
}
