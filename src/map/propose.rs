//! Proposes a map from one source to another, based on names, shapes and order.

use super::{NameMap, Preset, Transform};
use crate::dtype::TensorSpec;
use crate::source::TensorSource;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The confidence of a [`Proposed`] line, in increasing order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Sureness {
    /// Only shape and order suggest it. Review it.
    Guess,
    /// The names have parts in common, and the shapes fit.
    Likely,
    /// The names agree, and no other name of that shape does.
    Sure,
}

impl fmt::Display for Sureness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sureness::Guess => "a guess, by shape and order",
            Sureness::Likely => "likely",
            Sureness::Sure => "sure",
        })
    }
}

/// One line of a [`Proposal`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Proposed {
    /// The target tensor or layer.
    pub name: String,
    /// Its inputs, in the text form of a map.
    pub made_of: String,
    /// The confidence.
    pub sureness: Sureness,
    line: NameMap,
}

/// The result of [`propose`].
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Proposal {
    /// The proposed inputs of each target tensor, by name.
    pub lines: Vec<Proposed>,
    /// Target tensors for which nothing fits.
    pub missing: Vec<String>,
    /// Tensors of the source that are not used.
    pub unused: Vec<String>,
    /// A prefix that no name of the source has.
    prefix: String,
}

impl Proposal {
    /// Returns the map, which contains the target names only.
    pub fn map(&self) -> NameMap {
        let map = self.lines.iter().fold(NameMap::new(), |map, line| map.then(line.line.clone()));
        if self.lines.is_empty() { map } else { map.only([&self.prefix]).remove_prefix(&format!("{}/", self.prefix)) }
    }
}

/// Writes the text form, with a comment per line that states the confidence.
impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.map().to_string();
        let mut lines = text.lines();
        writeln!(f, "{}", lines.next().unwrap_or_default())?;
        for proposed in &self.lines {
            writeln!(f, "{}  # {}", lines.next().unwrap_or_default(), proposed.sureness)?;
        }
        lines.try_for_each(|line| writeln!(f, "{line}"))?;
        let comment = |name: &String| name.replace(|c: char| c.is_control(), "?");
        self.missing.iter().try_for_each(|name| writeln!(f, "# nothing fits: {}", comment(name)))?;
        self.unused.iter().try_for_each(|name| writeln!(f, "# not used: {}", comment(name)))
    }
}

/// The maximum number of comparisons of two names of at most [`WORDS`] pairs of words; longer ones count as more.
const MAX_WORK: usize = 2_000_000;
const WORDS: usize = 64;

/// The maximum number of names that are looked at to find recurrent layers.
const MAX_LOOKS: usize = 500_000;

/// Proposes a map by which `from` has the tensors of `to`. Names are compared part by part, with `kernel` equal to
/// `weight` and the like. Shapes must fit, possibly transposed. Recurrent layers of Keras become presets. Optimizers
/// are left out.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// use tch_checkpoint::map::{Sureness, propose};
/// use tch_checkpoint::{Checkpoint, Counter, interop};
/// let path = Checkpoint::new().track("step", &Counter::new(7))?.write(temp.path().join("seven"))?;
/// let source = interop::open(&path)?;
/// let proposal = propose(&*source, &*source);
/// assert!(proposal.lines.iter().all(|line| line.sureness == Sureness::Sure));
/// # Ok(())
/// # }
/// ```
pub fn propose(from: &dyn TensorSource, to: &dyn TensorSource) -> Proposal {
    let weights = |source: &dyn TensorSource| -> BTreeMap<String, TensorSpec> {
        let kept = NameMap::new().weights().apply(source).map(|mapped| mapped.tensors().clone());
        let mut kept = kept.unwrap_or_else(|_| source.tensors().clone());
        kept.retain(|key, _| source.first_alias(key) == key || !source.tensors().contains_key(source.first_alias(key)));
        kept
    };
    // Any name of a variable may be the decisive one.
    let all = NameMap::new().weights().apply(from).map(|mapped| mapped.tensors().clone());
    let sources = all.unwrap_or_else(|_| from.tensors().clone());
    let mut wanted = weights(to);
    let mut prefix = "wanted".to_string();
    while sources.keys().any(|key| key.starts_with(&prefix)) {
        prefix.push('_');
    }
    let mut state = Proposing { from, sources: &sources, used: BTreeSet::new(), lines: Vec::new(), prefix: &prefix };
    state.recurrent(&mut wanted);
    state.tensors(&mut wanted, &places(from), &places(to));
    let Proposing { used, mut lines, .. } = state;
    lines.sort_by(|a, b| a.name.cmp(&b.name));
    let unused = weights(from).into_keys().filter(|key| !used.contains(from.first_alias(key))).collect();
    Proposal { lines, missing: wanted.into_keys().collect(), unused, prefix }
}

fn places(source: &dyn TensorSource) -> BTreeMap<String, usize> {
    source.order().into_iter().enumerate().map(|(at, key)| (key.to_string(), at)).collect()
}

struct Proposing<'a> {
    from: &'a dyn TensorSource,
    sources: &'a BTreeMap<String, TensorSpec>,
    /// The first alias of each used tensor.
    used: BTreeSet<String>,
    lines: Vec<Proposed>,
    prefix: &'a str,
}

/// A pair of tensors that fits.
struct Pair<'a> {
    score: f64,
    /// The distance of the two in their files, from 0 to 1.
    apart: f64,
    wanted: &'a str,
    source: &'a str,
    how: How,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum How {
    AsIs,
    Transposed,
    /// A kernel of a convolution of Keras.
    Convolution,
}

impl Proposing<'_> {
    /// Matches GRU and LSTM layers, whose gates and biases cannot be recognized by shape.
    fn recurrent(&mut self, wanted: &mut BTreeMap<String, TensorSpec>) {
        let layers: Vec<(String, TensorSpec)> = wanted
            .iter()
            .filter_map(|(key, spec)| Some((key.strip_suffix(".weight_hh_l0")?.to_string(), spec.clone())))
            .collect();
        // Each try looks at all names.
        let each = self.sources.len().max(wanted.len()).max(1);
        let mut tries = MAX_LOOKS / each;
        for (layer, spec) in layers {
            let [all, units] = spec.shape.as_slice() else { continue };
            let Some(left) = tries.checked_sub(1) else { break };
            tries = left;
            let both = wanted.contains_key(&format!("{layer}.weight_hh_l0_reverse"));
            let preset = match all.checked_div(*units) {
                Some(_) if both => Preset::KerasBidirectional,
                Some(3) => Preset::KerasGru,
                Some(4) => Preset::KerasLstm,
                _ => continue,
            };
            let kernels = self.sources.iter().filter(|(_, spec)| spec.shape == [*units, *all]);
            let candidates: BTreeSet<String> =
                kernels.filter(|(key, _)| is_recurrent(key)).filter_map(|(key, _)| layer_of(key, both)).collect();
            let own_words = words(&layer);
            let best = candidates.iter().map(|from| (score(&own_words, &words(from)), from));
            let mut best: Vec<(f64, &String)> = best.collect();
            best.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
            for (score, from) in best.iter().take(8) {
                let Some(left) = tries.checked_sub(1) else { break };
                tries = left;
                let name = format!("{}/{layer}", self.prefix);
                let line = NameMap::new().layer(&name.replace('*', "?"), preset, from);
                let Ok(mapped) = line.clone().only([self.prefix]).apply(self.from) else { continue };
                let own = format!("{layer}.");
                let is_all = mapped.tensors().iter().all(|(key, spec)| {
                    wanted.get(&key[self.prefix.len() + 1..]).is_some_and(|known| known.shape == spec.shape)
                });
                let sources: BTreeSet<String> = mapped
                    .mappings()
                    .iter()
                    .flat_map(|mapping| mapping.from.iter().map(|key| self.from.first_alias(key).to_string()))
                    .collect();
                if !is_all || sources.iter().any(|key| self.used.contains(key)) {
                    continue;
                }
                wanted.retain(|key, _| {
                    !(key.starts_with(&own) && mapped.tensors().contains_key(&format!("{}/{key}", self.prefix)))
                });
                self.used.extend(sources);
                let same = speak_of_the_same(&own_words, &words(from));
                let sureness = if same && *score > 0.0 { Sureness::Likely } else { Sureness::Guess };
                let made_of = format!("{preset}({from})");
                self.lines.push(Proposed { name: layer.clone(), made_of, sureness, line });
                break;
            }
        }
    }

    /// Matches all other tensors, the best pairs first.
    fn tensors(
        &mut self,
        wanted: &mut BTreeMap<String, TensorSpec>,
        from_places: &BTreeMap<String, usize>,
        to_places: &BTreeMap<String, usize>,
    ) {
        let all = wanted.clone();
        let mut by_size: BTreeMap<(Vec<u64>, bool), Vec<&str>> = BTreeMap::new();
        let group = |spec: &TensorSpec| {
            let mut shape = spec.shape.clone();
            shape.sort_unstable();
            (shape, is_float(spec))
        };
        for (key, spec) in self.sources {
            if all.contains_key(key) || !self.used.contains(self.from.first_alias(key)) {
                by_size.entry(group(spec)).or_default().push(key);
            }
        }
        let place = |places: &BTreeMap<String, usize>, key: &str| {
            places.get(key).map_or(0.5, |at| *at as f64 / places.len().max(1) as f64)
        };
        let words_of: BTreeMap<&str, Vec<String>> =
            by_size.values().flatten().map(|source| (*source, words(source))).collect();
        let mut pairs = Vec::new();
        let mut work = MAX_WORK * WORDS;
        for (name, spec) in &all {
            let own = words(name);
            for source in by_size.get(&group(spec)).into_iter().flatten() {
                let theirs = words_of.get(source).map_or(&[][..], Vec::as_slice);
                let Some(left) = work.checked_sub(WORDS.max(own.len() * theirs.len())) else { break };
                work = left;
                let Some(how) = how(source, &self.sources[*source], name, spec) else { continue };
                let score = if *source == name { 2.0 } else { score(&own, theirs) };
                let apart = (place(from_places, source) - place(to_places, name)).abs();
                pairs.push(Pair { score, apart, wanted: name, source, how });
            }
        }
        pairs.sort_by(|a, b| {
            let order = b.score.total_cmp(&a.score).then(a.apart.total_cmp(&b.apart));
            order.then_with(|| (a.wanted, a.source).cmp(&(b.wanted, b.source)))
        });
        // The two best scores per target name, to decide whether one stands out.
        let mut best: BTreeMap<&str, Vec<(f64, &str)>> = BTreeMap::new();
        for pair in &pairs {
            let known = best.entry(pair.wanted).or_default();
            let first = self.from.first_alias(pair.source);
            if known.len() < 2 && known.iter().all(|(_, key)| *key != first) {
                known.push((pair.score, first));
            }
        }
        for pair in &pairs {
            let first = self.from.first_alias(pair.source);
            // A tied tensor is used under each of its names that is wanted.
            let is_used = self.used.contains(first) && pair.source != pair.wanted;
            if is_used || wanted.remove(pair.wanted).is_none() {
                continue;
            }
            let stands_out = best.get(pair.wanted).is_none_or(|scores| match scores.as_slice() {
                [(a, key), (b, _)] => *key == first && a - b > 0.05,
                _ => true,
            });
            let sureness = match pair.score {
                score if score >= 0.99 && stands_out && (pair.how == How::AsIs || score < 1.5) => Sureness::Sure,
                score if score >= if stands_out { 0.3 } else { 0.6 } => {
                    let same = speak_of_the_same(&words(pair.wanted), &words(pair.source));
                    if same { Sureness::Likely } else { Sureness::Guess }
                }
                _ => Sureness::Guess,
            };
            self.used.insert(first.to_string());
            self.push(pair, &all[pair.wanted], sureness);
        }
    }

    fn push(&mut self, pair: &Pair<'_>, spec: &TensorSpec, sureness: Sureness) {
        let source = &self.sources[pair.source];
        let own =
            |name: &str| Transform(super::transform::Expr::Source(super::Pattern::from_parts(vec![name.to_string()])));
        let mut transform = match pair.how {
            How::AsIs => own(pair.source),
            How::Transposed => own(pair.source).transpose(),
            How::Convolution => {
                let spatial = source.shape.len() as i64 - 2;
                let axes: Vec<i64> = [spatial + 1, spatial].into_iter().chain(0..spatial).collect();
                own(pair.source).permute(axes)
            }
        };
        if source.dtype != spec.dtype {
            transform = transform.cast(spec.dtype);
        }
        let made_of = transform.to_string();
        let name = format!("{}/{}", self.prefix, pair.wanted);
        let line = NameMap::new().define_literal(&name, transform);
        self.lines.push(Proposed { name: pair.wanted.to_string(), made_of, sureness, line });
    }
}

fn is_float(spec: &TensorSpec) -> bool {
    use crate::dtype::Dtype;
    matches!(spec.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

/// Returns how one tensor becomes the other, based on shapes and Keras' names.
fn how(source: &str, from: &TensorSpec, wanted: &str, to: &TensorSpec) -> Option<How> {
    if from.dtype != to.dtype && !(is_float(from) && is_float(to)) {
        return None;
    }
    let last = |key: &str| key.rsplit(['/', '.']).next().unwrap_or_default().trim_end_matches(":0").to_string();
    let is_kernel = last(source).ends_with("kernel") && last(wanted).starts_with("weight");
    let rank = from.shape.len();
    let reversed: Vec<u64> = from.shape.iter().rev().copied().collect();
    if rank == 2 && reversed == to.shape && (is_kernel || from.shape != to.shape) {
        return Some(How::Transposed);
    }
    if rank > 2 && is_kernel {
        let spatial = rank - 2;
        let convolution: Vec<u64> = [from.shape[spatial + 1], from.shape[spatial]]
            .into_iter()
            .chain(from.shape[..spatial].iter().copied())
            .collect();
        return (convolution == to.shape).then_some(How::Convolution);
    }
    (from.shape == to.shape).then_some(How::AsIs)
}

fn is_recurrent(key: &str) -> bool {
    let key = key.trim_end_matches(":0");
    key.ends_with("recurrent_kernel") || key.ends_with("cell/vars/1")
}

/// Returns the layer of a recurrent kernel; for two directions, the layer around both.
fn layer_of(key: &str, both: bool) -> Option<String> {
    let mut names: Vec<&str> = key.split('/').collect();
    names.pop()?;
    if names.last() == Some(&"vars") {
        names.pop();
    }
    if both {
        let at = names.iter().position(|name| name.trim_start_matches('_').starts_with("forward"))?;
        names.truncate(at);
    } else if names.len() > 1 && names.last().is_some_and(|name| name.ends_with("cell")) {
        names.pop();
    }
    (!names.is_empty()).then(|| names.join("/"))
}

/// Returns the words of a name, translated to the terms of one tool.
fn words(name: &str) -> Vec<String> {
    let parts = name.split(['/', '.', ':', '-', '_']).filter(|part| !part.is_empty() && *part != "vars");
    let mut words = Vec::new();
    for part in parts {
        let lower = part.to_lowercase();
        let word = match lower.as_str() {
            "kernel" | "gamma" | "embeddings" | "w" => "weight",
            "beta" | "b" => "bias",
            "moving" => "running",
            "variance" => "var",
            "normalization" => "norm",
            other => other,
        };
        words.push(word.to_string());
    }
    words
}

/// Words that do not identify a layer.
const COMMON: [&str; 9] = ["weight", "bias", "running", "mean", "var", "model", "module", "layers", "0"];

/// Returns `true` if two names have an identifying word in common.
fn speak_of_the_same(a: &[String], b: &[String]) -> bool {
    a.iter().any(|word| !COMMON.contains(&word.as_str()) && b.contains(word))
}

/// Returns the similarity of two names, from 0 to 1. Later words weigh more.
fn score(a: &[String], b: &[String]) -> f64 {
    let weight = |words: &[String], at: usize| 1.0 + at as f64 / words.len().max(1) as f64;
    let sum = |words: &[String]| (0..words.len()).map(|at| weight(words, at)).sum::<f64>();
    let mut free: Vec<bool> = vec![true; b.len()];
    let mut common = 0.0;
    for (at, word) in a.iter().enumerate() {
        let found = (0..b.len()).rev().find(|&other| free[other] && b[other] == *word);
        if let Some(other) = found {
            free[other] = false;
            common += weight(a, at) + weight(b, other);
        }
    }
    let all = sum(a) + sum(b);
    if all == 0.0 { 0.0 } else { common / all }
}
