//! `#[derive(Trackable)]` of [tch-checkpoint](https://docs.rs/tch-checkpoint), which re-exports it.

mod expand;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Implements `Trackable` for a struct: its fields are tracked under their names, those of a tuple struct under `0`, `1`, …
///
/// Attributes of fields:
///
/// * `#[track(skip)]` leaves the field out: configuration, caches, what is tracked elsewhere.
/// * `#[track(rename = "…")]` tracks it under another name: so that checkpoints stay readable when a field is renamed.
/// * `#[track(flatten)]` tracks what is in the field as if it were fields of this struct. The field must be a struct that derives
///   `Trackable`, a list or a map; tracking anything else so is an error.
///
/// Every field that is tracked must be `Trackable`. Type parameters may be anything: the bounds are on the fields' types.
///
/// ```
/// use tch_checkpoint::{Checkpoint, Counter, Trackable, Value};
///
/// #[derive(Trackable)]
/// struct Progress {
///     step: Counter,
///     #[track(rename = "best_loss")]
///     best: Value<f64>,
///     #[track(skip)]
///     verbose: bool,
/// }
///
/// let progress = Progress { step: Counter::new(3), best: Value::new(0.5), verbose: true };
/// let checkpoint = Checkpoint::new().track("progress", &progress)?;
/// assert_eq!(checkpoint.contents()?.entries()[0].key, "progress/best_loss");
/// # let _ = progress.verbose;
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
///
/// A field that is not `Trackable` is an error of the compiler that points at it:
///
/// ```compile_fail,E0277
/// use tch_checkpoint::Trackable;
///
/// #[derive(Trackable)]
/// struct Progress {
///     started: std::time::Instant,
/// }
/// ```
#[proc_macro_derive(Trackable, attributes(track))]
pub fn derive_trackable(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::expand(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}
