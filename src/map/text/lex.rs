//! The tokens of the text form of maps.

use crate::map::pattern::Pattern;

/// A result, or the column and the reason.
pub(super) type Step<T> = std::result::Result<T, (usize, String)>;

/// A part of a line.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// A word. Names of functions, numbers and ranges are words, too.
    Word(Pattern),
    /// A text in quotes, which is always a name.
    Quoted(Pattern),
    Mark(char),
    End,
}

/// A token and its place.
pub(super) struct Lexed {
    pub(super) token: Token,
    pub(super) column: usize,
    /// The characters as written.
    pub(super) text: String,
}

/// Returns the tokens of a line, followed by an end token.
pub(super) fn lex(line: &str) -> Step<Vec<Lexed>> {
    let chars: Vec<char> = line.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let begin = at;
        match c {
            '#' => break,
            c if c.is_whitespace() => at += 1,
            '(' | ')' | '[' | ']' | ',' | '=' => {
                at += 1;
                tokens.push((Token::Mark(c), begin, at));
            }
            '"' => {
                let name = quoted(&chars, &mut at)?;
                tokens.push((Token::Quoted(name), begin, at));
            }
            _ => {
                while chars.get(at).is_some_and(|c| !c.is_whitespace() && !"()[],=#\"".contains(*c)) {
                    at += 1;
                }
                let word: String = chars[begin..at].iter().collect();
                if let Some(place) = word.chars().position(|c| c == '\\' || c.is_control()) {
                    let reason = "a name with this character needs double quotes".to_string();
                    return Err((begin + place + 1, reason));
                }
                tokens.push((Token::Word(Pattern::new(&word)), begin, at));
            }
        }
    }
    let end = (Token::End, at, at);
    let lexed = |(token, begin, end): (Token, usize, usize)| Lexed {
        token,
        column: begin + 1,
        text: chars[begin..end].iter().collect(),
    };
    Ok(tokens.into_iter().chain([end]).map(lexed).collect())
}

/// Parses a name in quotes, from the first quote to behind the last.
fn quoted(chars: &[char], at: &mut usize) -> Step<Pattern> {
    let begin = *at;
    let mut parts = vec![String::new()];
    *at += 1;
    loop {
        let place = *at;
        let c = *chars.get(place).ok_or((begin + 1, "the quote is not closed".to_string()))?;
        *at += 1;
        let last = parts.len() - 1;
        match c {
            '"' => return Ok(Pattern::from_parts(parts)),
            '*' => parts.push(String::new()),
            '\\' => {
                let escaped = chars.get(*at).copied();
                *at += 1;
                match escaped {
                    Some(c @ ('"' | '\\' | '*')) => parts[last].push(c),
                    Some('u') => parts[last].push(unicode(chars, at).ok_or((place + 1, BAD_ESCAPE.to_string()))?),
                    _ => return Err((place + 1, BAD_ESCAPE.to_string())),
                }
            }
            c => parts[last].push(c),
        }
    }
}

const BAD_ESCAPE: &str = r#"after `\` comes `"`, `\`, `*`, or `u{…}` with up to six hexadecimal digits"#;

fn unicode(chars: &[char], at: &mut usize) -> Option<char> {
    let rest = chars.get(*at..)?;
    let end = rest.iter().take(8).position(|c| *c == '}')?;
    let digits: String = rest.get(1..end)?.iter().collect();
    *at += end + 1;
    let is_right = rest.first() == Some(&'{') && digits.chars().all(|c| c.is_ascii_hexdigit());
    char::from_u32(u32::from_str_radix(&digits, 16).ok().filter(|_| is_right)?)
}
