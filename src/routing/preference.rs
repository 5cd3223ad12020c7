//! Who wants reads to go where: what a session has set, what is said of its user, of the listener that it came in by, and of its
//! database.

use super::verdict::Wish;
use super::{Consistency, Reason};

/// What somebody wants, as far as they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Preference {
    /// Where reads go.
    pub route: Option<Wish>,
    /// What they may miss.
    pub consistency: Option<Consistency>,
}

/// Where reads are wanted, and who wants them there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaning {
    /// Where.
    pub route: Wish,
    /// Who has said so.
    pub by: Reason,
}

impl Leaning {
    /// Nobody has said anything.
    pub const NONE: Self = Self { route: Wish::Auto, by: Reason::Configured };

    /// What counts of what is said: the nearest to the statement first. The session, its user, its listener, its database.
    pub fn of(session: Option<Wish>, user: Preference, listener: Preference, database: Wish) -> Self {
        let said = [(session, Reason::Setting), (user.route, Reason::User), (listener.route, Reason::Listener)];
        let first = said.into_iter().find_map(|(route, by)| route.map(|route| Self { route, by }));
        first.unwrap_or(Self { route: database, by: Reason::Configured })
    }

    /// The same, where a comment in front of the statement may say otherwise.
    #[must_use]
    pub const fn unless(self, comment: Wish) -> Self {
        match comment {
            Wish::Auto => self,
            Wish::Primary | Wish::Replica => Self { route: comment, by: Reason::Comment },
        }
    }
}

impl Consistency {
    /// What counts of what is said, in the same order.
    pub fn of(session: Option<Self>, user: Preference, listener: Preference, database: Self) -> Self {
        session.or(user.consistency).or(listener.consistency).unwrap_or(database)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_nearest_to_the_statement_counts() {
        let says = |route| Preference { route: Some(route), consistency: None };
        let (primary, replica, auto) = (Wish::Primary, Wish::Replica, Wish::Auto);
        let nobody = Preference::default();
        for (session, user, listener, database, route, by) in [
            (None, nobody, nobody, auto, auto, Reason::Configured),
            (None, nobody, nobody, primary, primary, Reason::Configured),
            (None, nobody, says(replica), primary, replica, Reason::Listener),
            (None, says(primary), says(replica), auto, primary, Reason::User),
            (Some(replica), says(primary), says(primary), primary, replica, Reason::Setting),
            // "auto" is something that is said, too.
            (Some(auto), says(primary), says(primary), primary, auto, Reason::Setting),
            (None, nobody, says(auto), primary, auto, Reason::Listener),
        ] {
            assert_eq!(Leaning::of(session, user, listener, database), Leaning { route, by });
        }
        let leaning = Leaning { route: primary, by: Reason::User };
        assert_eq!(leaning.unless(auto), leaning);
        assert_eq!(leaning.unless(replica), Leaning { route: replica, by: Reason::Comment });
    }
}
