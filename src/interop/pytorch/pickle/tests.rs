use crate::error::Result;
use crate::interop::ReadOptions;
use crate::interop::foreign::Foreign;
use crate::interop::pytorch::{archive_of, open_bytes};
use crate::source::TensorSource;

fn open(pickle: &[u8]) -> Result<Foreign> {
    open_bytes(archive_of(&[("x/data.pkl", pickle)]).unwrap(), &ReadOptions::default())
}

fn refusal(pickle: &[u8]) -> String {
    open(pickle).unwrap_err().to_string()
}

/// A pickle of protocol 2 with these opcodes in it.
fn of(parts: &[&[u8]]) -> Vec<u8> {
    [&[b"\x80\x02".as_slice()], parts, &[b".".as_slice()]].concat().concat()
}

#[test]
fn values_are_what_they_were() {
    let pickle = of(&[
        b"}(",
        b"X\x01\0\0\0aK\x07",
        b"X\x01\0\0\0b\x8a\x01\xff",
        b"X\x01\0\0\0cG?\xe0\0\0\0\0\0\0",
        b"X\x01\0\0\0dN",
        b"X\x01\0\0\0e\x88",
        b"X\x01\0\0\0f](K\x01K\x02e",
        b"X\x01\0\0\0g\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\0",
        b"u",
    ]);
    let source = open(&pickle).unwrap();
    let values = source.values();
    assert_eq!((&values["a"], &values["b"], &values["c"]), (&7.into(), &(-1).into(), &0.5.into()));
    assert!(values["d"].is_null());
    assert_eq!((&values["e"], values["f"].to_string()), (&true.into(), "[1,2]".to_string()));
    assert_eq!(values["g"].as_u64(), Some(u64::MAX));
}

#[test]
fn nesting_ends_in_an_error_and_not_in_the_stack() {
    let deep = [vec![b']'; 20_000], vec![b'a'; 19_999]].concat();
    assert!(refusal(&of(&[&deep])).contains("deeper"));
    let tuples = [b")".to_vec(), vec![0x85; 30_000]].concat();
    assert!(refusal(&of(&[&tuples])).contains("deeper"));
    assert!(open(&of(&[&vec![b'('; 20_000]])).is_err());
}

/// Every opcode that makes something takes more memory than the byte it is.
#[test]
fn memory_is_in_proportion_to_the_pickle() {
    for opcode in [b']', b'}', b'(', b'N', b'2'] {
        let many = [b"N".to_vec(), vec![opcode; 1 << 20]].concat();
        let reason = refusal(&of(&[&many]));
        let expected = ["describes more than it holds", "left over", "the stack is empty"];
        assert!(expected.iter().any(|what| reason.contains(what)), "{}: {reason}", opcode as char);
    }
}

#[test]
fn paths_through_shared_objects_are_bounded() {
    // Each pair holds the one before twice.
    let pairs: Vec<u8> = (0..40).flat_map(|_| *b"2\x86").collect();
    assert!(refusal(&of(&[b"K\x07", &pairs])).contains("again and again"));
}

#[test]
fn a_global_is_refused_with_its_name_its_byte_and_its_path() {
    let pickle = of(&[b"}X\x03\0\0\0netcos\nsystem\nX\x02\0\0\0ls\x85Rs"]);
    let reason = refusal(&pickle);
    assert!(reason.contains("`os.system`") && reason.contains("at byte ") && reason.contains("`net`"), "{reason}");
    let options = ReadOptions::default().unknown_objects(true);
    let source = open_bytes(archive_of(&[("x/data.pkl", &pickle)]).unwrap(), &options).unwrap();
    assert!(source.unreadable()["net"].contains("os.system"));
}

#[test]
fn what_leads_nowhere_is_an_error() {
    for (pickle, what) in [
        (of(&[b""]), "stack"),
        (of(&[b"N0N0"]), "stack"),
        (of(&[b"NN"]), "left over"),
        (of(&[b"(N"]), "left over"),
        (of(&[b"h\x05"]), "memo"),
        (of(&[b"t"]), "mark"),
        (of(&[b"NQ"]), "persistent id"),
        (of(&[b"X\xff\xff\xff\xffx"]), "bytes should follow"),
        (b"\x80\x02N".to_vec(), "ends early"),
        (b"\x80\x09N.".to_vec(), "protocol 9"),
        (b"\x80\x02N.N.".to_vec(), "follow its end"),
    ] {
        let reason = refusal(&pickle);
        assert!(reason.contains(what), "{what}: {reason}");
    }
}
