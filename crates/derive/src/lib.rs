//! `#[derive(Trackable)]` of [tch-checkpoint](https://docs.rs/tch-checkpoint), which re-exports it.

mod expand;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Implements `Trackable` for a struct: its fields are tracked under their names, those of a tuple struct under `0`,
/// `1` and so on.
///
/// Attributes of fields:
///
/// * `#[track(skip)]` leaves the field out, for configuration, caches, and objects that are tracked elsewhere.
/// * `#[track(rename = "…")]` tracks it under another name, so that checkpoints remain readable when a field is
///   renamed.
/// * `#[track(flatten)]` tracks the content of the field as if it were fields of this struct. The field must be a
///   struct that derives `Trackable`, a list or a map; anything else is an error when the struct is tracked.
///
/// Every tracked field must be `Trackable`. Type parameters can be any types: the bounds are on the fields' types. A field
/// whose type contains the struct itself, such as the children of a tree, adds none; if its type needs more than the other
/// fields, add that as a bound of the struct. Two generic structs that contain each other cannot both derive `Trackable`:
/// implement it for one by hand.
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
/// A field that is not `Trackable` is a compile error at that field:
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
