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
    // The state of an object is the object itself, or an object with a state, and so on.
    let object = b"cargparse\nNamespace\n";
    let unreadable = b"c__builtin__\ncomplex\nK\0K\0\x86R\x85";
    assert!(refusal(&of(&[object, unreadable, b"\x81q\0h\0b"])).contains("deeper"));
    let (objects, states) = (b"h\0h\x01\x81".repeat(30_000), vec![b'b'; 29_999]);
    let chain = of(&[object, b"q\x000", unreadable, b"q\x010", &objects, &states]);
    assert!(refusal(&chain).contains("deeper"));
    // A few are no reason to refuse it, and their states are found.
    let few = of(&[object, b"q\x000", unreadable, b"q\x010", &b"h\0h\x01\x81".repeat(3), b"}X\x01\0\0\0aK\x07sbbb"]);
    assert_eq!(open(&few).unwrap().values()["a"], 7);
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

/// The opcode of a text or bytes of a length.
fn run(opcode: u8, length: u32) -> Vec<u8> {
    [&[opcode], length.to_le_bytes().as_slice(), &vec![b'a'; length as usize]].concat()
}

/// A pickle that calls a global with the same arguments again and again.
fn calls(global: &[u8], args: &[u8]) -> Vec<u8> {
    of(&[global, b"q\x000", args, b"q\x010(", &b"h\x00h\x01R".repeat(60_000), b"l"])
}

/// A call has few bytes, and what it makes may be as long as its arguments.
#[test]
fn what_calls_copy_is_counted() {
    let list = [b"(".as_slice(), &[b'N'; 2_000], b"l\x85"].concat();
    let many = [b"(".as_slice(), &[b'N'; 100], b"t"].concat();
    let dims = [b"(".as_slice(), &b"K\x01".repeat(64), b"t"].concat();
    let array = [b"(C\x01acnumpy\ndtype\nX\x02\0\0\0u1\x85R".as_slice(), &dims, b"X\x01\0\0\0Ct"].concat();
    let cases: [(&[u8], Vec<u8>); 6] = [
        (b"c__builtin__\ntuple\n", list.clone()),
        (b"c__builtin__\nset\n", list),
        (b"c__builtin__\nbytes\n", [run(b'B', 4_000), b"\x85".to_vec()].concat()),
        (b"ctorch\ndevice\n", [run(b'X', 4_000), b"K\0\x86".to_vec()].concat()),
        (b"cargparse\nNamespace\n", many),
        (b"cnumpy.core.numeric\n_frombuffer\n", array),
    ];
    for (global, args) in cases {
        let reason = refusal(&calls(global, &args));
        assert!(reason.contains("describes more than it holds"), "{}: {reason}", String::from_utf8_lossy(global));
    }
    // In TorchScript a function may have any name, of which the reason consists.
    let class = format!("c__torch__\n{}\n", "A".repeat(4_000));
    let args = [b"(".as_slice(), class.as_bytes(), b"ctorch\nTensor\n)}t"].concat();
    let pickle = calls(b"ctorch._tensor\n_rebuild_from_type_v2\n", &args);
    let records: [(&str, &[u8]); 2] = [("x/data.pkl", &pickle), ("x/constants.pkl", b"\x80\x02).")];
    let reason = open_bytes(archive_of(&records).unwrap(), &ReadOptions::default()).unwrap_err().to_string();
    assert!(reason.contains("describes more than it holds"), "{reason}");
}

/// What is looked through at every call is short.
#[test]
fn calls_take_no_time_that_depends_on_their_arguments() {
    let marks = [b"}(".as_slice(), &b"h\x05\x88".repeat(100_000), b"u"].concat();
    let tensor = [storage(b"X\x01\0\0\x000").as_slice(), b"K\0))\x89N", &marks, b"t"].concat();
    let tensor = [b"X\x04\0\0\0conjq\x050(".as_slice(), &tensor].concat();
    let reason = refusal(&calls(b"ctorch._utils\n_rebuild_tensor_v2\n", &tensor));
    assert!(reason.contains("100000 marks"), "{reason}");
    // Bytes that are to be a text.
    let device = [run(b'B', 5_000), b"\x85".to_vec()].concat();
    let reason = refusal(&calls(b"ctorch\ndevice\n", &device));
    assert!(reason.contains("arguments"), "{reason}");
    // The digits of a dtype.
    let digits = [b"X\x88\x13\0\0f".as_slice(), &[b'0'; 4_998], b"4"].concat();
    let reason = refusal(&of(&[b"cnumpy\ndtype\n", &digits, b"\x85R"]));
    assert!(reason.contains("numpy dtype f000"), "{reason}");
    // The key of a storage.
    let reason = refusal(&of(&[&storage(&run(b'X', 5_000))]));
    assert!(reason.contains("255 bytes"), "{reason}");
}

/// The opcodes of a storage.
fn storage(key: &[u8]) -> Vec<u8> {
    [b"(X\x07\0\0\0storagectorch\nFloatStorage\n", key, b"X\x03\0\0\0cpuK\x01tQ"].concat()
}

#[test]
fn paths_through_shared_objects_are_bounded() {
    // Each pair holds the one before twice.
    let pairs: Vec<u8> = (0..40).flat_map(|_| *b"2\x86").collect();
    assert!(refusal(&of(&[b"K\x07", &pairs])).contains("again and again"));
}

/// What is shared is copied for every place.
#[test]
fn long_texts_in_many_places_are_bounded() {
    let long = run(b'X', 100_000);
    // 2^63, with many zeros before it.
    let number = [b"\x8b".as_slice(), &100_000_u32.to_le_bytes(), &[0; 7], &[0x80], &vec![0; 99_992]].concat();
    let dims = [b"(".as_slice(), &b"K\x01".repeat(64), b"t"].concat();
    let tensor =
        [b"ctorch._utils\n_rebuild_tensor_v2\n(".as_slice(), &storage(b"X\x01\0\0\x000"), b"K\0", &dims, &dims];
    for object in [
        [tensor.concat().as_slice(), b"\x89NtR"].concat(),
        long.clone(),
        number,
        [b"cpathlib\nPosixPath\n(".as_slice(), &long, b"t\x81"].concat(),
        [b"}".as_slice(), &long, b"Ns"].concat(),
        [b"X\x09\0\0\0__torch__".as_slice(), &long, b"\x93"].concat(),
    ] {
        let pickle = of(&[&object, b"q\x000(", &b"h\0".repeat(5_000), b"l"]);
        let mut records: Vec<(&str, &[u8])> = vec![("x/data.pkl", &pickle), ("x/data/0", b"abcd")];
        if object.ends_with(b"\x93") {
            records.push(("x/constants.pkl", b"\x80\x02)."));
        }
        let reason = open_bytes(archive_of(&records).unwrap(), &ReadOptions::default()).unwrap_err().to_string();
        assert!(reason.contains("more memory than its objects"), "{:?}: {reason}", &object[..20]);
    }
}

/// Entries that share a long key, and a global that is refused.
#[test]
fn the_path_of_a_refused_global_is_found_without_a_copy_of_all_names() {
    let entries = [b"h\0]".repeat(30_000), b"h\0cos\nsystem\n".to_vec()].concat();
    let reason = refusal(&of(&[&run(b'X', 100_000), b"q\x000}(", &entries, b"u"]));
    assert!(reason.contains("`os.system`") && reason.contains("`aaa") && reason.len() < 1_000, "{reason}");
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
