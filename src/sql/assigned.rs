//! Settings that a statement is given by parameters: `set_config($1, $2, false)`.

use super::lexer::{Lexer, StrKind, Token};

/// A setting that a call of `set_config()` gives the value of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assigned<'a> {
    /// Its name.
    pub name: Name<'a>,
    /// The number of the parameter, beginning with 1. Nothing else in the statement asks for it.
    pub value: u16,
}

/// Where the name of a setting comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name<'a> {
    /// It is in the text.
    Is(&'a [u8]),
    /// It is the value of the parameter of this number.
    Parameter(u16),
}

/// The settings that a statement is given by parameters.
pub fn assigned(text: &[u8], standard_strings: bool) -> Vec<Assigned<'_>> {
    let (mut found, mut asked) = (Vec::new(), Vec::new());
    let mut lexer = Lexer::new(text, standard_strings);
    loop {
        match lexer.next_token() {
            Token::End | Token::Broken => break,
            Token::Param => asked.extend(lexer.parameter()),
            Token::Word(word) if word.eq_ignore_ascii_case(b"set_config") => {
                found.extend(call(lexer.clone()));
            }
            Token::Word(_)
            | Token::Quoted(_)
            | Token::Str(..)
            | Token::Number(_)
            | Token::Punct(_)
            | Token::Operator(_) => {}
        }
    }
    found.retain(|assigned| asked.iter().filter(|number| **number == assigned.value).count() == 1);
    found
}

/// The arguments of a call, of which `lexer` stands behind the name.
fn call<'a>(mut lexer: Lexer<'a>) -> Option<Assigned<'a>> {
    let punct = |lexer: &mut Lexer<'a>, known| (lexer.next_token() == Token::Punct(known)).then_some(());
    punct(&mut lexer, b'(')?;
    let name = match lexer.next_token() {
        Token::Str(StrKind::Plain | StrKind::Dollar, name) => Name::Is(name),
        Token::Param => Name::Parameter(lexer.parameter()?),
        Token::Word(_)
        | Token::Quoted(_)
        | Token::Str(..)
        | Token::Number(_)
        | Token::Punct(_)
        | Token::Operator(_)
        | Token::End
        | Token::Broken => return None,
    };
    punct(&mut lexer, b',')?;
    let value = (lexer.next_token() == Token::Param).then(|| lexer.parameter()).flatten()?;
    punct(&mut lexer, b',')?;
    Some(Assigned { name, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_comes_by_a_parameter_is_found_with_the_name_of_its_setting() {
        let is = |name: &'static str, value| Assigned { name: Name::Is(name.as_bytes()), value };
        for (text, expected) in [
            ("select set_config('my.x', $1, false)", vec![is("my.x", 1)]),
            ("SELECT pg_catalog.Set_Config('a', $12, true), set_config('b', $2, $3)", vec![is("a", 12), is("b", 2)]),
            ("select set_config($1, $2, $3)", vec![Assigned { name: Name::Parameter(1), value: 2 }]),
            ("select set_config('a', $1, false), $1", vec![]),
            ("select set_config('a', $1, false), set_config('b', $1, false)", vec![]),
            ("select set_config('a', 'b', false), '$1'", vec![]),
            ("select set_config('a', $1::text, false)", vec![]),
            ("select set_config('a', $1 || 'x', false)", vec![]),
            ("select set_config('a', $1", vec![]),
        ] {
            assert_eq!(assigned(text.as_bytes(), true), expected, "{text}");
        }
    }
}
