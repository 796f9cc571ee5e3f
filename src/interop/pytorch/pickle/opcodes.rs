//! The opcodes, a function per group. What they do to the machine is in `machine`.

use super::machine::{EMPTY_TUPLE, MAX_LINE, Machine, NONE, pairs};
use super::{Id, Node, Step};

impl Machine<'_, '_> {
    /// Executes one opcode.
    pub(super) fn step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            0x80 => match self.reader.byte()? {
                0..=5 => Ok(()),
                version => Err(format!("protocol {version} is not known").into()),
            },
            // FRAME: only a hint for readers that fetch ahead.
            0x95 => self.reader.array::<8>().map(drop),
            b'(' | b'0'..=b'2' => self.stack_step(opcode),
            b'N' | b'F'..=b'G' | b'I'..=b'M' | 0x88..=0x8b => self.number_step(opcode),
            b'B' | b'C' | b'T' | b'U' | b'X' | 0x8c..=0x8e | 0x96 => self.text_step(opcode),
            b')' | b't' | b']' | b'l' | b'}' | b'd' | 0x85..=0x87 | 0x8f | 0x91 => self.container_step(opcode),
            b'a' | b'e' | b's' | b'u' | 0x90 => self.item_step(opcode),
            b'g' | b'h' | b'j' | b'p'..=b'r' | 0x94 => self.memo_step(opcode),
            b'c' | b'R' | b'b' | b'Q' | 0x81 | 0x93 => self.object_step(opcode),
            _ => self.refused_step(opcode),
        }
    }

    /// Moves what is on the stack.
    fn stack_step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b'(' => {
                self.arena.charge(16);
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => match self.marks.last() {
                Some(&mark) if mark == self.stack.len() => {
                    self.marks.pop();
                    Ok(())
                }
                _ => self.pop().map(drop),
            },
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.push(top)
            }
            _ => self.refused_step(opcode),
        }
    }

    /// Pushes a constant or a number.
    fn number_step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b'N' => self.push_small(NONE, || Node::None),
            0x88 => self.push_bool(true),
            0x89 => self.push_bool(false),
            b'J' => {
                let value = i32::from_le_bytes(self.reader.array()?);
                self.push_int(value.into())
            }
            b'K' => {
                let value = self.reader.byte()?;
                self.push_int(value.into())
            }
            b'M' => {
                let value = u16::from_le_bytes(self.reader.array()?);
                self.push_int(value.into())
            }
            b'I' => self.text_int(true),
            b'L' => self.text_int(false),
            0x8a => {
                let length = self.reader.byte()?;
                self.long(length.into())
            }
            0x8b => {
                let length = u64::try_from(i32::from_le_bytes(self.reader.array()?));
                self.long(length.map_err(|_| "an integer of negative length")?)
            }
            b'G' => {
                let value = f64::from_be_bytes(self.reader.array()?);
                self.push_new(Node::Float(value))
            }
            b'F' => {
                let line = self.reader.line(MAX_LINE)?;
                let value = std::str::from_utf8(&line).ok().and_then(|text| text.parse().ok());
                let value = value.ok_or("a number is not one")?;
                self.push_new(Node::Float(value))
            }
            _ => self.refused_step(opcode),
        }
    }

    /// Pushes a text or bytes.
    fn text_step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b'X' | b'T' | b'B' => {
                let length = u32::from_le_bytes(self.reader.array()?);
                self.run_of(opcode != b'B', length.into())
            }
            0x8c | b'U' | b'C' => {
                let length = self.reader.byte()?;
                self.run_of(opcode != b'C', length.into())
            }
            0x8d | 0x8e | 0x96 => {
                let length = u64::from_le_bytes(self.reader.array()?);
                self.run_of(opcode == 0x8d, length)
            }
            _ => self.refused_step(opcode),
        }
    }

    /// Pushes a tuple, list, dictionary or set.
    fn container_step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b')' => self.push_small(EMPTY_TUPLE, || Node::Tuple(Box::default())),
            b't' => {
                let items = self.pop_mark()?;
                self.push_new(Node::Tuple(items.into()))
            }
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let at = self.height_for(count)?;
                let items: Box<[Id]> = self.stack[at..].into();
                self.stack.truncate(at);
                self.push_new(Node::Tuple(items))
            }
            b']' => self.push_new(Node::List(Box::default())),
            b'l' => {
                let items = self.pop_mark()?;
                self.push_new(Node::List(Box::new(items)))
            }
            b'}' => self.push_new(Node::Dict(Box::default())),
            b'd' => {
                let items = self.pop_mark()?;
                let pairs = pairs(&items)?;
                self.push_new(Node::Dict(Box::new(pairs)))
            }
            0x8f => self.push_new(Node::Set(Box::default())),
            0x91 => {
                let items = self.pop_mark()?;
                self.push_new(Node::Set(Box::new(items)))
            }
            _ => self.refused_step(opcode),
        }
    }

    /// Adds items to a container.
    fn item_step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b'a' => {
                let item = self.pop()?;
                self.extend(&[item])
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend(&items)
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)
            }
            _ => self.refused_step(opcode),
        }
    }

    /// Puts the top of the stack into the memo, or pushes what is in it.
    fn memo_step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b'q' => {
                let place = self.reader.byte()?;
                self.put(place.into())
            }
            b'r' => {
                let place = u32::from_le_bytes(self.reader.array()?);
                self.put(place)
            }
            b'p' => {
                let place = self.text_place()?;
                self.put(place)
            }
            0x94 => {
                let place = self.memo.len() as u32;
                self.put(place)
            }
            b'h' => {
                let place = self.reader.byte()?;
                self.get(place.into())
            }
            b'j' => {
                let place = u32::from_le_bytes(self.reader.array()?);
                self.get(place)
            }
            b'g' => {
                let place = self.text_place()?;
                self.get(place)
            }
            _ => self.refused_step(opcode),
        }
    }

    /// Pushes a global or the result of a call, or sets the state of an object.
    fn object_step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b'c' => {
                let (module, name) = (self.reader.line(MAX_LINE)?, self.reader.line(MAX_LINE)?);
                self.global(module, name)
            }
            0x93 => {
                let name = self.pop()?;
                let module = self.pop()?;
                let text = |id| match self.arena.node(id) {
                    Node::Text(text) => Some(text.as_bytes().to_vec()),
                    _ => None,
                };
                let (Some(module), Some(name)) = (text(module), text(name)) else {
                    return Err("the name of a global is not a text".into());
                };
                self.global(module, name)
            }
            b'R' | 0x81 => {
                let args = self.pop()?;
                let callee = self.pop()?;
                self.call(callee, args, opcode == 0x81)
            }
            b'b' => {
                let state = self.pop()?;
                let object = self.top()?;
                match self.arena.node(object) {
                    Node::Refused(_) | Node::Unreadable(_) => Ok(()),
                    _ => self.rules.build(self.arena, object, state),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let object = self.rules.persistent(self.arena, id)?;
                self.push(object)
            }
            _ => self.refused_step(opcode),
        }
    }

    /// Refuses what is not read. What it would call is noted first.
    fn refused_step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b'i' => {
                let (module, name) = (self.reader.line(MAX_LINE)?, self.reader.line(MAX_LINE)?);
                self.refuse_global(module, name)?;
                Err("the opcode INST, which calls a class by name, is not read".into())
            }
            // OBJ and NEWOBJ_EX. Of NEWOBJ_EX the class is below the arguments; of OBJ it is the first after the mark.
            b'o' => {
                let items = self.pop_mark()?;
                self.refuse_callee(items.first().copied())?;
                Err("the opcode OBJ, which calls a class, is not read".into())
            }
            0x92 => {
                let at = self.height_for(3)?;
                self.refuse_callee(self.stack.get(at).copied())?;
                Err("the opcode NEWOBJ_EX, which calls a class, is not read".into())
            }
            b'P' => Err("persistent ids as text are not read".into()),
            0x82..=0x84 => Err("the extension registry of an interpreter is not read".into()),
            0x97 | 0x98 => Err("buffers outside the pickle are not read".into()),
            _ => Err(format!("0x{opcode:02x} is no opcode that is read").into()),
        }
    }
}
