//! The text form of maps, specified in `docs/maps.md`.

mod lex;

use self::lex::{Lexed, Step, Token, lex};
use super::NameMap;
use super::pattern::Pattern;
use super::preset::Preset;
use super::statement::{Definition, Kind, Statement};
use super::transform::{Expr, Function, TensorFunction};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::name;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// The first statement.
pub(super) const HEADER: &str = "map 1";

/// The maximum length of a text in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// The maximum nesting depth of functions.
const MAX_DEPTH: usize = 64;

/// User-defined functions that a text may call.
///
/// ```
/// # use tch_checkpoint::map::{Functions, TensorFunction};
/// # use tch_checkpoint::TensorSpec;
/// # struct Reverse;
/// # impl TensorFunction for Reverse {
/// #     fn spec(&self, inputs: &[TensorSpec]) -> Result<TensorSpec, tch_checkpoint::BoxError> { Ok(inputs[0].clone()) }
/// #     fn apply(&self, _: &[TensorSpec], inputs: Vec<Vec<u8>>) -> Result<Vec<u8>, tch_checkpoint::BoxError> { Ok(inputs[0].clone()) }
/// # }
/// let map = Functions::new().with("reverse", Reverse).parse("map 1\na = reverse(b)\n")?;
/// # let _ = map;
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Functions {
    known: BTreeMap<String, Function>,
}

impl Functions {
    /// Creates an empty set.
    #[must_use]
    pub fn new() -> Functions {
        Functions::default()
    }

    /// Adds a function, under a name that no function of the language has.
    #[must_use]
    pub fn with(mut self, name: &str, function: impl TensorFunction + 'static) -> Functions {
        let function = Function { name: name.to_string(), function: Arc::new(function) };
        self.known.insert(name.to_string(), function);
        self
    }

    /// Parses a text that may call these functions.
    ///
    /// # Errors
    /// [`Error::Map`] with line and column.
    pub fn parse(&self, text: &str) -> Result<NameMap> {
        parse(text, &self.known).map_err(|at| Error::Map {
            path: None,
            line: at.line,
            column: at.column,
            reason: at.reason,
        })
    }

    /// Like [`parse`](Functions::parse), for the file `path`.
    ///
    /// # Errors
    /// [`Error::Map`], [`Error::Io`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<NameMap> {
        let path = path.as_ref();
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
        read.map_err(|e| Error::io("read the file", path, e))?;
        let at = |line, column, reason: String| Error::Map { path: Some(path.into()), line, column, reason };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(at(1, 1, format!("it is longer than {MAX_BYTES} bytes")));
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            let good = String::from_utf8_lossy(&e.as_bytes()[..e.utf8_error().valid_up_to()]);
            at(1 + good.matches('\n').count(), 1, "it is not UTF-8".to_string())
        })?;
        parse(&text, &self.known).map_err(|wrong| at(wrong.line, wrong.column, wrong.reason))
    }
}

/// An error and its position.
struct Wrong {
    line: usize,
    column: usize,
    reason: String,
}

fn parse(text: &str, functions: &BTreeMap<String, Function>) -> Result<NameMap, Wrong> {
    let mut statements = Vec::new();
    let mut has_header = false;
    for (at, line) in text.lines().enumerate() {
        let line_number = at + 1;
        let wrong = |(column, reason): (usize, String)| Wrong { line: line_number, column, reason };
        let tokens = lex(line).map_err(wrong)?;
        let mut parser = Parser { tokens: &tokens, at: 0, functions };
        if parser.peek() == &Token::End {
            continue;
        }
        if !has_header {
            parser.header().map_err(wrong)?;
            has_header = true;
            continue;
        }
        let column = parser.column();
        let kind = parser.statement().map_err(wrong)?;
        statements.push(Statement::new(kind, line_number, column));
    }
    if !has_header {
        let reason = format!("a map starts with the line `{HEADER}`");
        return Err(Wrong { line: 1, column: 1, reason });
    }
    Ok(NameMap { statements })
}

struct Parser<'a> {
    tokens: &'a [Lexed],
    at: usize,
    functions: &'a BTreeMap<String, Function>,
}

const WORDS: [&str; 8] = ["only", "include", "exclude", "weights", "add_prefix", "remove_prefix", "optional", "map"];

impl<'a> Parser<'a> {
    fn lexed(&self) -> &'a Lexed {
        // The last token is the end.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn peek(&self) -> &'a Token {
        &self.lexed().token
    }

    fn column(&self) -> usize {
        self.lexed().column
    }

    fn wrong<T>(&self, reason: impl Into<String>) -> Step<T> {
        Err((self.column(), reason.into()))
    }

    /// Returns the present token for a message.
    fn found(&self) -> String {
        match self.peek() {
            Token::End => "the end of the line".to_string(),
            _ => format!("`{}`", self.lexed().text),
        }
    }

    fn expect(&mut self, mark: char) -> Step<()> {
        if *self.peek() != Token::Mark(mark) {
            return self.wrong(format!("`{mark}` is expected here, not {}", self.found()));
        }
        self.at += 1;
        Ok(())
    }

    /// Consumes `mark` if it comes next. Returns whether it did.
    fn passes(&mut self, mark: char) -> bool {
        let is_there = *self.peek() == Token::Mark(mark);
        self.at += usize::from(is_there);
        is_there
    }

    fn header(&mut self) -> Step<()> {
        let words: Vec<&str> = self.tokens.iter().map(|lexed| lexed.text.as_str()).collect();
        match words.as_slice() {
            ["map", "1", ""] => Ok(()),
            ["map", version, ""] => {
                Err((self.tokens[1].column, format!("this version reads maps of version 1, not {version}")))
            }
            _ => self.wrong(format!("a map starts with the line `{HEADER}`")),
        }
    }

    fn statement(&mut self) -> Step<Kind> {
        let is_definition = matches!(self.tokens.get(self.at + 1).map(|lexed| &lexed.token), Some(Token::Mark('=')));
        let word = if is_definition { "" } else { self.lexed().text.as_str() };
        let column = self.column();
        let kind = match word {
            "only" => Kind::Only(self.names()?),
            "include" => Kind::Include(self.names()?),
            "exclude" => Kind::Exclude(self.names()?),
            "weights" => {
                self.at += 1;
                Kind::Weights
            }
            "add_prefix" => Kind::AddPrefix(self.literal()?),
            "remove_prefix" => Kind::RemovePrefix(self.literal()?),
            "optional" => {
                self.at += 1;
                self.definition(true)?
            }
            "" => self.definition(false)?,
            other => {
                let near = name::nearest(other, WORDS.into_iter());
                let near = near.map(|near| format!(" (`{near}`?)")).unwrap_or_default();
                let reason = format!("`{other}` is no statement{near}; a definition is `NAME = WHAT IT IS MADE OF`");
                return Err((column, reason));
            }
        };
        match self.peek() {
            Token::End => Ok(kind),
            _ => self.wrong(format!("the statement ends before {}", self.found())),
        }
    }

    fn name(&mut self, what: &str) -> Step<Pattern> {
        match self.peek() {
            Token::Word(name) | Token::Quoted(name) => {
                self.at += 1;
                Ok(name.clone())
            }
            _ => self.wrong(format!("{what} is expected here, not {}", self.found())),
        }
    }

    /// Parses one or more names after a word.
    fn names(&mut self) -> Step<Vec<Pattern>> {
        self.at += 1;
        let mut names = vec![self.name("a name")?];
        while *self.peek() != Token::End {
            names.push(self.name("a name")?);
        }
        Ok(names)
    }

    /// Parses a name without stars after a word.
    fn literal(&mut self) -> Step<String> {
        self.at += 1;
        let column = self.column();
        let name = self.name("a prefix")?;
        name.plain()
            .map(str::to_string)
            .ok_or((column, r"a prefix has no `*`; as a character it is `\*` in quotes".to_string()))
    }

    fn definition(&mut self, optional: bool) -> Step<Kind> {
        let name = self.name("a name")?;
        self.expect('=')?;
        let column = self.column();
        if let Some(preset) = self.preset().filter(|_| !optional) {
            self.at += 2;
            let from = self.name("the name of a layer")?;
            self.expect(')')?;
            if from.stars() != name.stars() {
                return Err((column, format!("{from} has {} stars, {name} has {}", from.stars(), name.stars())));
            }
            return Ok(Kind::Layer(name, preset, from));
        }
        let expr = self.expr(0)?;
        check_stars(&name, &expr).map_err(|reason| (column, reason))?;
        Ok(Kind::Define(Definition { name, expr, optional }))
    }

    /// Returns the preset that is called here.
    fn preset(&self) -> Option<Preset> {
        let is_call = matches!(self.tokens.get(self.at + 1).map(|lexed| &lexed.token), Some(Token::Mark('(')));
        let text = self.lexed().text.as_str();
        Preset::ALL.iter().copied().find(|preset| is_call && preset.name() == text)
    }

    fn expr(&mut self, depth: usize) -> Step<Expr> {
        if depth > MAX_DEPTH {
            return self.wrong(format!("functions nest deeper than {MAX_DEPTH}"));
        }
        let is_call = matches!(self.tokens.get(self.at + 1).map(|lexed| &lexed.token), Some(Token::Mark('(')));
        match self.peek() {
            Token::Word(_) if is_call => self.call(depth),
            _ => self.name("the name of a tensor, or a function,").map(Expr::Source),
        }
    }

    fn call(&mut self, depth: usize) -> Step<Expr> {
        let (function, column) = (self.lexed().text.as_str(), self.column());
        self.at += 2;
        let expr = match function {
            "concat" | "stack" | "add" => {
                let dim = if function == "add" { 0 } else { self.first_number()? };
                let mut parts = vec![self.expr(depth + 1)?];
                while self.passes(',') {
                    parts.push(self.expr(depth + 1)?);
                }
                match function {
                    "concat" => Expr::Concat(dim, parts),
                    "stack" => Expr::Stack(dim, parts),
                    _ => Expr::Add(parts),
                }
            }
            "cast" | "transpose" | "reshape" | "flatten" | "slice" | "blocks" | "repeat" | "pad" | "truncate"
            | "zeros" => {
                let inner = Box::new(self.expr(depth + 1)?);
                self.unary(function, inner)?
            }
            own => match self.functions.get(own) {
                Some(function) => {
                    let mut parts = vec![self.expr(depth + 1)?];
                    while self.passes(',') {
                        parts.push(self.expr(depth + 1)?);
                    }
                    Expr::Function(function.clone(), parts)
                }
                None => {
                    if Preset::ALL.iter().any(|preset| preset.name() == own) {
                        let reason = format!("`{own}` is of a whole layer: `LAYER = {own}(LAYER)`");
                        return Err((column, reason));
                    }
                    let presets = Preset::ALL.iter().map(|preset| preset.name());
                    let known = FUNCTIONS.into_iter().chain(presets).chain(self.functions.keys().map(String::as_str));
                    let near = name::nearest(own, known).map(|near| format!(" (`{near}`?)")).unwrap_or_default();
                    return Err((column, format!("there is no function `{own}`{near}")));
                }
            },
        };
        self.expect(')')?;
        Ok(expr)
    }

    /// Parses the arguments of a function after its tensor.
    fn unary(&mut self, function: &str, inner: Box<Expr>) -> Step<Expr> {
        Ok(match function {
            "cast" => {
                self.expect(',')?;
                let text = self.lexed().text.as_str();
                let dtype = Dtype::ALL.iter().find(|dtype| dtype.name() == text);
                let names = || Dtype::ALL.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(", ");
                let Some(dtype) = dtype else {
                    return self.wrong(format!("a dtype is expected here, not {}: one of {}", self.found(), names()));
                };
                self.at += 1;
                Expr::Cast(inner, *dtype)
            }
            "transpose" => {
                let axes =
                    if self.passes(',') { Some(self.list(|text| text.parse().ok(), "a dimension")?) } else { None };
                Expr::Transpose(inner, axes)
            }
            "reshape" => {
                self.expect(',')?;
                let length = |text: &str| if text == "_" { Some(None) } else { text.parse().ok().map(Some) };
                Expr::Reshape(inner, self.list(length, "a length, or `_`,")?)
            }
            "flatten" => Expr::Flatten(inner, self.number()?, self.number()?),
            "slice" => {
                let dim = self.number()?;
                self.expect(',')?;
                let range =
                    self.lexed().text.split_once("..").and_then(|(start, end)| Some((bound(start)?, bound(end)?)));
                let Some((start, end)) = range else {
                    return self.wrong(format!(
                        "a range such as `2..5`, `2..` or `..5` is expected here, not {}",
                        self.found()
                    ));
                };
                self.at += 1;
                Expr::Slice(inner, dim, start, end)
            }
            "blocks" => {
                let (dim, count) = (self.number()?, self.length()?);
                self.expect(',')?;
                Expr::Blocks(inner, dim, count, self.list(|text| text.parse().ok(), "the number of a block")?)
            }
            "repeat" => {
                self.expect(',')?;
                Expr::Repeat(inner, self.list(|text| text.parse().ok(), "a number")?)
            }
            "pad" => {
                let (dim, length) = (self.number()?, self.length()?);
                let value = if self.passes(',') { self.value(|text| text.parse().ok(), "a number")? } else { 0.0 };
                Expr::Pad(inner, dim, length, value)
            }
            "truncate" => Expr::Truncate(inner, self.number()?, self.length()?),
            _ => Expr::Zeros(inner),
        })
    }

    fn value<T>(&mut self, parse: impl Fn(&str) -> Option<T>, what: &str) -> Step<T> {
        let text = self.lexed().text.as_str();
        match parse(text).filter(|_| matches!(self.peek(), Token::Word(_))) {
            Some(value) => {
                self.at += 1;
                Ok(value)
            }
            None => self.wrong(format!("{what} is expected here, not {}", self.found())),
        }
    }

    fn first_number(&mut self) -> Step<i64> {
        let dim = self.value(|text| text.parse().ok(), "a dimension")?;
        self.expect(',')?;
        Ok(dim)
    }

    /// Parses a dimension after a comma.
    fn number(&mut self) -> Step<i64> {
        self.expect(',')?;
        self.value(|text| text.parse().ok(), "a dimension")
    }

    /// Parses a length after a comma.
    fn length(&mut self) -> Step<u64> {
        self.expect(',')?;
        self.value(|text| text.parse().ok(), "a length")
    }

    fn list<T>(&mut self, parse: impl Fn(&str) -> Option<T>, what: &str) -> Step<Vec<T>> {
        self.expect('[')?;
        let mut items = Vec::new();
        if self.passes(']') {
            return Ok(items);
        }
        loop {
            items.push(self.value(&parse, what)?);
            if !self.passes(',') {
                break;
            }
        }
        self.expect(']')?;
        Ok(items)
    }
}

/// Parses the end of a range: a number, or nothing.
#[allow(clippy::option_option, reason = "a range may have no end")]
fn bound(text: &str) -> Option<Option<u64>> {
    if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
}

const FUNCTIONS: [&str; 13] = [
    "cast",
    "transpose",
    "reshape",
    "flatten",
    "slice",
    "blocks",
    "concat",
    "stack",
    "repeat",
    "pad",
    "truncate",
    "add",
    "zeros",
];

/// Checks that every name in an expression has as many stars as the defined name or none, and that the defined name has
/// none if no name has any.
pub(super) fn check_stars(name: &Pattern, expr: &Expr) -> Result<(), String> {
    let stars = name.stars();
    let mut most = 0;
    for source in expr.sources() {
        if source.stars() != 0 && source.stars() != stars {
            return Err(format!("{source} has {} stars, {name} has {stars}", source.stars()));
        }
        most = most.max(source.stars());
    }
    match most == stars {
        true => Ok(()),
        false => Err(format!("{name} has stars, and nothing that it is made of says what they stand for")),
    }
}
