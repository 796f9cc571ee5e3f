use super::*;
use std::path::Path;

fn archive(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut zip = ZipWriter::new(&mut bytes, 64);
    records.iter().for_each(|(name, record)| zip.record(name, record).unwrap());
    zip.finish().unwrap();
    bytes
}

fn open(bytes: &[u8]) -> Result<Archive> {
    Archive::open(Input::memory(Path::new("archive"), bytes))
}

#[test]
fn what_is_written_is_read_and_aligned() {
    let bytes = archive(&[("x/a", b"one"), ("x/b", b""), ("x/c", &[7; 1000])]);
    let archive = open(&bytes).unwrap();
    assert_eq!(archive.order(), ["x/a", "x/b", "x/c"]);
    for (name, expected) in [("x/a", b"one".to_vec()), ("x/b", vec![]), ("x/c", vec![7; 1000])] {
        let record = archive.get(name).unwrap();
        assert_eq!(record.read_vec(1 << 20).unwrap(), expected);
        assert_eq!(record.has_checksum(), !expected.is_empty());
        let begin = bytes.windows(expected.len().max(1)).position(|part| part == expected);
        assert!(expected.is_empty() || begin.unwrap() % 64 == 0);
    }
}

#[test]
fn more_records_than_16_bits_count_need_zip64() {
    let names: Vec<String> = (0..66_000).map(|i| format!("x/{i}")).collect();
    let records: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), b"1".as_slice())).collect();
    let archive = open(&archive(&records)).unwrap();
    assert_eq!(archive.records().len(), 66_000);
}

/// Whatever byte is changed: the archive is refused, or each record is what it was, or its checksum says that it is
/// not.
#[test]
fn no_changed_byte_changes_a_record() {
    let bytes = archive(&[("x/a", b"one"), ("x/b", b"two and three")]);
    for at in 0..bytes.len() {
        for flip in [1, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            let Ok(archive) = open(&changed) else { continue };
            let names: Vec<&String> = archive.records().keys().collect();
            assert_eq!(names, ["x/a", "x/b"], "byte {at}");
            for (name, expected) in [("x/a", b"one".as_slice()), ("x/b", b"two and three")] {
                if let Ok(read) = archive.get(name).unwrap().read_vec(100) {
                    assert_eq!(read, expected, "byte {at}");
                }
            }
        }
    }
}

#[test]
fn an_archive_that_is_cut_off_is_refused() {
    let bytes = archive(&[("x/a", b"one")]);
    for length in 0..bytes.len() {
        assert!(open(&bytes[..length]).is_err(), "{length}");
    }
}

#[test]
fn names_that_lead_out_and_names_twice_are_refused() {
    for name in ["/etc/passwd", "../x", "x/../../y", "c:/x", "x\\y", "x\0y"] {
        let error = open(&archive(&[(name, b"1")])).unwrap_err().to_string();
        assert!(error.contains("leads out"), "{name:?}: {error}");
    }
    let error = open(&archive(&[("x/a", b"1"), ("x/a", b"2")])).unwrap_err().to_string();
    assert!(error.contains("two records have the name"), "{error}");
}
