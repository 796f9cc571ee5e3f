#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(what) = tch_checkpoint_torture::hostile::condition(bytes) {
        panic!("{what}");
    }
});
