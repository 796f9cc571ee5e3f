//! The machine: a stack, marks, a memo.

use super::{Arena, Global, Id, Node, PickleError, PickleReader, Rules, Step};
use std::collections::HashMap;

/// The longest line of a text opcode.
pub(super) const MAX_LINE: usize = 64 << 10;

/// How far the values that are shared go.
const SMALL_INTS: std::ops::RangeInclusive<i64> = -1..=256;
pub(super) const NONE: usize = 0;
const FALSE: usize = 1;
const TRUE: usize = 2;
pub(super) const EMPTY_TUPLE: usize = 3;
const INT_0: usize = 5;

/// The result of a pickle.
#[derive(Debug)]
pub(crate) struct Unpickled {
    pub root: Id,
    /// The first global that is not allowed, if there is one.
    pub refused: Option<u32>,
}

/// Reads one pickle, up to and with its STOP. An error has the position.
pub(crate) fn unpickle(reader: &mut PickleReader<'_>, arena: &mut Arena, rules: &mut dyn Rules) -> Step<Unpickled> {
    let begin = reader.position();
    let mut machine = Machine {
        reader,
        arena,
        rules,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        first_refused: None,
    };
    let result = machine.run(begin);
    let (at, refused) = (machine.reader.position(), machine.first_refused);
    match result {
        Ok(root) => Ok(Unpickled { root, refused }),
        Err(PickleError::Bad(reason)) => {
            // Errors after a rejected global are consequences of it.
            let reason = match refused.and_then(|place| arena.globals.get(place as usize)) {
                Some(global) => format!("at byte {}: {}", global.offset, not_allowed(&global.text())),
                None => format!("before byte {at}: {reason}"),
            };
            Err(PickleError::Bad(reason))
        }
        Err(e) => Err(e),
    }
}

/// Returns what is said of a global that is not on the list.
pub(crate) fn not_allowed(global: &str) -> String {
    format!("the global `{global}` is not allowed: only tensors and plain data are read, and nothing is executed")
}

pub(super) struct Machine<'a, 'b> {
    pub(super) reader: &'a mut PickleReader<'b>,
    pub(super) arena: &'a mut Arena,
    pub(super) rules: &'a mut dyn Rules,
    pub(super) stack: Vec<Id>,
    /// Heights of the stack.
    pub(super) marks: Vec<usize>,
    pub(super) memo: HashMap<u32, Id>,
    first_refused: Option<u32>,
}

impl Machine<'_, '_> {
    fn run(&mut self, begin: u64) -> Step<Id> {
        loop {
            let opcode = self.reader.byte()?;
            if opcode == b'.' {
                let root = self.pop()?;
                return if self.stack.is_empty() && self.marks.is_empty() {
                    Ok(root)
                } else {
                    Err("it stops with objects left over".into())
                };
            }
            self.step(opcode)?;
            self.arena.check(self.reader.position() - begin)?;
        }
    }

    // The stack.

    pub(super) fn push(&mut self, id: Id) -> Step<()> {
        self.arena.charge(8);
        self.stack.push(id);
        Ok(())
    }

    pub(super) fn push_new(&mut self, node: Node) -> Step<()> {
        let id = self.arena.add_charged(node)?;
        self.push(id)
    }

    pub(super) fn push_small(&mut self, place: usize, node: fn() -> Node) -> Step<()> {
        let id = self.arena.small(place, node)?;
        self.push(id)
    }

    pub(super) fn push_bool(&mut self, value: bool) -> Step<()> {
        let id = self.arena.small(if value { TRUE } else { FALSE }, || Node::Bool(value))?;
        self.push(id)
    }

    pub(super) fn push_int(&mut self, value: i64) -> Step<()> {
        if SMALL_INTS.contains(&value) {
            let id = self.arena.small((value + INT_0 as i64) as usize, || Node::Int(value))?;
            return self.push(id);
        }
        self.push_new(Node::Int(value))
    }

    /// How high the stack is without its last `count` objects, all above the last mark.
    pub(super) fn height_for(&self, count: usize) -> Step<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let at = self.stack.len().checked_sub(count).filter(|&at| at >= floor);
        at.ok_or_else(|| "the stack is empty".into())
    }

    pub(super) fn top(&self) -> Step<Id> {
        let at = self.height_for(1)?;
        Ok(self.stack[at])
    }

    pub(super) fn pop(&mut self) -> Step<Id> {
        self.height_for(1)?;
        self.stack.pop().ok_or_else(|| "the stack is empty".into())
    }

    pub(super) fn pop_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len()).ok_or("there is no mark")?;
        Ok(self.stack.split_off(mark))
    }

    // The memo.

    pub(super) fn put(&mut self, place: u32) -> Step<()> {
        let top = self.top()?;
        self.arena.charge(24);
        self.memo.insert(place, top);
        Ok(())
    }

    pub(super) fn get(&mut self, place: u32) -> Step<()> {
        let id = self.memo.get(&place).copied();
        self.push(id.ok_or_else(|| format!("the memo has nothing at {place}"))?)
    }

    pub(super) fn text_place(&mut self) -> Step<u32> {
        let line = self.reader.line(20)?;
        let place = std::str::from_utf8(&line).ok().and_then(|text| text.parse().ok());
        place.ok_or_else(|| "a place of the memo is not a number".into())
    }

    // Values.

    pub(super) fn text_int(&mut self, bools: bool) -> Step<()> {
        let line = self.reader.line(MAX_LINE)?;
        match line.as_slice() {
            b"00" if bools => return self.push_bool(false),
            b"01" if bools => return self.push_bool(true),
            _ => {}
        }
        let digits = line.strip_suffix(b"L").unwrap_or(&line);
        let value = std::str::from_utf8(digits).ok().and_then(|text| text.trim().parse().ok());
        self.push_int(value.ok_or("an integer is not one, or does not fit into 64 bits")?)
    }

    pub(super) fn long(&mut self, length: u64) -> Step<()> {
        let bytes = self.reader.bytes(length)?;
        let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
        let fill = if negative { 0xff } else { 0 };
        if bytes.iter().skip(8).any(|&byte| byte != fill)
            || bytes.get(7).is_some_and(|byte| (byte & 0x80 != 0) != negative)
        {
            return self.push_new(Node::BigInt(bytes.into()));
        }
        let mut value = [fill; 8];
        for (to, from) in value.iter_mut().zip(&bytes) {
            *to = *from;
        }
        self.push_int(i64::from_le_bytes(value))
    }

    /// Text or bytes. What Python 2 calls a string, and what Python 3 writes of half a character, may be no UTF-8: such
    /// a text is bytes.
    pub(super) fn run_of(&mut self, is_text: bool, length: u64) -> Step<()> {
        let bytes = self.reader.bytes(length)?;
        match if is_text { String::from_utf8(bytes) } else { return self.push_new(Node::Bytes(bytes.into())) } {
            Ok(text) => self.push_new(Node::Text(text.into())),
            Err(e) => self.push_new(Node::Bytes(e.into_bytes().into())),
        }
    }

    // Containers.

    pub(super) fn extend(&mut self, new: &[Id]) -> Step<()> {
        let top = self.top()?;
        self.arena.charge(8 * new.len() as u64);
        match self.arena.node_mut(top) {
            Some(Node::List(items) | Node::Set(items)) => items.extend_from_slice(new),
            Some(Node::Refused(_) | Node::Unreadable(_)) => {}
            _ => return Err("items are added to what is no list and no set".into()),
        }
        Ok(())
    }

    pub(super) fn set_items(&mut self, new: &[Id]) -> Step<()> {
        let pairs = pairs(new)?;
        let top = self.top()?;
        self.arena.charge(16 * pairs.len() as u64);
        match self.arena.node_mut(top) {
            Some(Node::Dict(items)) => items.extend(pairs),
            Some(Node::Refused(_) | Node::Unreadable(_)) => {}
            _ => return Err("items are set in what is no dictionary".into()),
        }
        Ok(())
    }

    // Globals.

    fn intern(&mut self, module: Vec<u8>, name: Vec<u8>) -> Step<u32> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| "the name of a global is not a text");
        let (module, name) = (text(module)?, text(name)?);
        let place = u32::try_from(self.arena.globals.len()).map_err(|_| "it has too many globals")?;
        self.arena.charge(64 + module.len() as u64 + name.len() as u64);
        let allowed = self.rules.allows(&module, &name);
        let offset = self.reader.position();
        self.arena.globals.push(Global { module: module.into(), name: name.into(), offset, allowed });
        Ok(place)
    }

    pub(super) fn global(&mut self, module: Vec<u8>, name: Vec<u8>) -> Step<()> {
        let place = self.intern(module, name)?;
        let allowed = self.arena.globals.get(place as usize).is_some_and(|global| global.allowed);
        if !allowed {
            self.first_refused.get_or_insert(place);
            return self.push_new(Node::Refused(place));
        }
        let node = self.rules.global(self.arena, place)?;
        self.push_new(node)
    }

    pub(super) fn refuse_global(&mut self, module: Vec<u8>, name: Vec<u8>) -> Step<()> {
        let place = self.intern(module, name)?;
        self.first_refused.get_or_insert(place);
        Ok(())
    }

    pub(super) fn refuse_callee(&mut self, callee: Option<Id>) -> Step<()> {
        if let Some(Node::Global(place) | Node::Refused(place)) = callee.map(|id| self.arena.node(id)) {
            self.first_refused.get_or_insert(*place);
        }
        Ok(())
    }

    pub(super) fn call(&mut self, callee: Id, args: Id, is_new: bool) -> Step<()> {
        let result = match self.arena.node(callee) {
            Node::Refused(place) => {
                let place = *place;
                return self.push_new(Node::Refused(place));
            }
            Node::Global(_) if self.arena.tuple(args).is_none() => {
                return Err("the arguments of a call are no tuple".into());
            }
            &Node::Global(place) if is_new => self.rules.new_object(self.arena, place, args)?,
            &Node::Global(place) => self.rules.call(self.arena, place, args)?,
            _ => return Err("what is called is no global".into()),
        };
        if let Node::Refused(place) = self.arena.node(result) {
            self.first_refused.get_or_insert(*place);
        }
        self.push(result)
    }
}

/// Keys and values, one after the other.
pub(super) fn pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
    } else {
        Err("a key has no value".into())
    }
}
