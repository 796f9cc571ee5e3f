//! A transform bound to its source: dtypes and shapes are known and fit, and elements can be computed.

use super::cast;
use super::rows::{Rows, permuted};
use super::transform::{Expr, Function};
use crate::dtype::{Dtype, TensorSpec};
use crate::error::{Error, Loss, Result};
use crate::source::{self, TensorSource, VerifiedBy, room};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// The maximum number of steps for one tensor, so that a short map cannot request unbounded work.
const MAX_STEPS: u64 = 4096;

/// The number of bytes that are computed at a time of a tensor that can be computed in pieces.
pub(super) const PIECE: u64 = 1 << 20;

/// A tensor that can be computed.
#[derive(Debug)]
pub(super) struct Bound {
    pub spec: TensorSpec,
    pub loss: Loss,
    /// The number of steps that produce it.
    steps: u64,
    /// Whether the computation depends on the elements and may fail.
    may_fail: bool,
    op: Op,
    inputs: Vec<Arc<Bound>>,
}

#[derive(Debug, Clone)]
enum Op {
    /// The source's tensor of this key.
    Source(String),
    Cast,
    /// The same bytes.
    Reshape,
    Permute(Vec<usize>),
    /// These ranges along a dimension, concatenated, and repeated so many times.
    Take {
        dim: usize,
        ranges: Vec<Range<u64>>,
        times: u64,
    },
    Concat(usize),
    /// Pads to the length of the result with this element.
    Pad(usize, Vec<u8>),
    Add,
    Zeros,
    Function(Function),
}

type Refusal = String;

impl Bound {
    /// Creates a tensor of the source, unchanged.
    pub(super) fn source(key: &str, spec: &TensorSpec) -> Arc<Bound> {
        let op = Op::Source(key.to_string());
        Arc::new(Bound { spec: spec.clone(), loss: Loss::Nothing, steps: 0, may_fail: false, op, inputs: Vec::new() })
    }

    /// Returns the key of the source's tensor, if it is unchanged.
    pub(super) fn plain(&self) -> Option<&str> {
        match &self.op {
            Op::Source(key) => Some(key),
            _ => None,
        }
    }

    /// Adds the keys of the source's tensors that it is computed from.
    pub(super) fn keys<'a>(&'a self, found: &mut BTreeSet<&'a str>) {
        found.extend(self.plain());
        self.inputs.iter().for_each(|input| input.keys(found));
    }

    /// Checks that each element is one of its inputs', moved or converted, or 0, so that the computation also applies
    /// to an optimizer's slots. The error is the reason.
    pub(super) fn moves_elements(&self) -> Result<(), Refusal> {
        let refused =
            |what: &str| Err(format!("it is made {what}, so that its elements are no elements of a variable"));
        match &self.op {
            Op::Source(_) | Op::Cast | Op::Reshape | Op::Permute(_) | Op::Concat(_) => {}
            Op::Take { times: 1, .. } => {}
            Op::Pad(_, element) if element.iter().all(|byte| *byte == 0) => {}
            Op::Take { .. } => return refused("by repeating"),
            Op::Pad(..) => return refused("by padding with another number than 0"),
            Op::Add => return refused("by adding"),
            Op::Zeros => return refused("of zeros"),
            Op::Function(function) => return refused(&format!("by the function {}", function.name)),
        }
        self.inputs.iter().try_for_each(|input| input.moves_elements())
    }

    /// Checks that no element is converted. The error is the reason.
    fn converts_nothing(&self) -> Result<(), Refusal> {
        if let Op::Cast = &self.op {
            return Err("it is made by converting, which may lose something".to_string());
        }
        self.inputs.iter().try_for_each(|input| input.converts_nothing())
    }

    /// Returns the same moves for the places of the elements, which are integers of 64 bits, and 0 for padding.
    ///
    /// # Errors
    /// The reason, if elements are not only moved.
    pub(super) fn of_places(&self) -> Result<Arc<Bound>, Refusal> {
        self.moves_elements()?;
        self.converts_nothing()?;
        self.with_places()
    }

    fn with_places(&self) -> Result<Arc<Bound>, Refusal> {
        let op = match &self.op {
            Op::Pad(dim, _) => Op::Pad(*dim, vec![0; Dtype::I64.size()]),
            op => op.clone(),
        };
        let spec = TensorSpec::new(Dtype::I64, self.spec.shape.clone());
        if spec.bytes().is_none() {
            return Err(format!("{} has more elements than memory holds the places of", self.spec));
        }
        let inputs = self.inputs.iter().map(|input| input.with_places()).collect::<Result<_, _>>()?;
        Ok(Arc::new(Bound { spec, loss: self.loss, steps: self.steps, may_fail: false, op, inputs }))
    }

    /// Returns `true` if it is made of zeros, whatever else is computed with it.
    pub(super) fn is_zeros(&self) -> bool {
        let moves = matches!(&self.op, Op::Cast | Op::Reshape | Op::Permute(_) | Op::Take { .. } | Op::Concat(_));
        matches!(&self.op, Op::Zeros) || (moves && self.inputs.iter().all(|input| input.is_zeros()))
    }

    /// Returns the text of its computation from the source's tensors.
    pub(super) fn shown(&self) -> String {
        let inputs: Vec<String> = self.inputs.iter().map(|input| input.shown()).collect();
        let inputs = inputs.join(", ");
        match &self.op {
            Op::Source(key) => super::pattern::Pattern::from_parts(vec![key.clone()]).to_string(),
            Op::Cast => format!("cast({inputs}, {})", self.spec.dtype),
            Op::Reshape => format!("reshape({inputs}, {:?})", self.spec.shape),
            Op::Permute(axes) => format!("transpose({inputs}, {axes:?})"),
            Op::Take { dim, ranges, times } => {
                let ranges: Vec<String> =
                    ranges.iter().map(|range| format!("{}..{}", range.start, range.end)).collect();
                let times = if *times == 1 { String::new() } else { format!(" × {times}") };
                format!("slice({inputs}, {dim}, {}{times})", ranges.join(" "))
            }
            Op::Concat(dim) => format!("concat({dim}, {inputs})"),
            Op::Pad(dim, _) => format!("pad({inputs}, {dim}, {})", self.spec.shape[*dim]),
            Op::Add => format!("add({inputs})"),
            Op::Zeros => format!("zeros({inputs})"),
            Op::Function(function) => format!("{}({inputs})", function.name),
        }
    }

    /// Returns a text that is the same for equal tensors.
    pub(super) fn signature(&self, source: &dyn TensorSource) -> String {
        match &self.op {
            Op::Source(key) => format!("{:?}", source.first_alias(key)),
            Op::Function(function) => format!("{function:?}{:p}{:?}", function.function, self.of_inputs(source)),
            op => format!("{op:?}{:?}{:?}", self.spec, self.of_inputs(source)),
        }
    }

    fn of_inputs(&self, source: &dyn TensorSource) -> Vec<String> {
        self.inputs.iter().map(|input| input.signature(source)).collect()
    }

    fn new(op: Op, inputs: Vec<Arc<Bound>>, spec: TensorSpec, loss: Loss) -> Result<Arc<Bound>, Refusal> {
        if spec.bytes().is_none_or(|bytes| bytes > i64::MAX as u64) {
            return Err(format!("the result would be {spec}, which no memory holds"));
        }
        let loss = inputs.iter().map(|input| input.loss).max().unwrap_or(Loss::Nothing).max(loss);
        let steps = inputs.iter().fold(1, |sum: u64, input| sum.saturating_add(input.steps));
        if steps > MAX_STEPS {
            return Err(format!("more than {MAX_STEPS} steps lead to it"));
        }
        let may_fail = inputs.iter().any(|input| input.may_fail)
            || match &op {
                Op::Cast => cast::may_fail(inputs[0].spec.dtype, spec.dtype),
                Op::Function(_) => true,
                _ => false,
            };
        Ok(Arc::new(Bound { spec, loss, steps, may_fail, op, inputs }))
    }

    /// Binds an expression; `find` returns the tensor of each name.
    pub(super) fn of(
        expr: &Expr,
        find: &mut dyn FnMut(&super::pattern::Pattern) -> Result<Arc<Bound>, Refusal>,
    ) -> Result<Arc<Bound>, Refusal> {
        let mut all = |parts: &[Expr]| parts.iter().map(|part| Bound::of(part, find)).collect::<Result<Vec<_>, _>>();
        match expr {
            Expr::Source(name) => find(name),
            Expr::Cast(inner, dtype) => {
                let inner = Bound::of(inner, find)?;
                let loss = cast::loss(inner.spec.dtype, *dtype)?;
                let spec = TensorSpec::new(*dtype, inner.spec.shape.clone());
                if inner.spec.dtype == *dtype { Ok(inner) } else { Bound::new(Op::Cast, vec![inner], spec, loss) }
            }
            Expr::Transpose(inner, axes) => permute(Bound::of(inner, find)?, axes.as_deref()),
            Expr::Reshape(inner, shape) => reshape(Bound::of(inner, find)?, shape),
            Expr::Flatten(inner, first, last) => flatten(Bound::of(inner, find)?, *first, *last),
            Expr::Slice(inner, dim, start, end) => {
                let inner = Bound::of(inner, find)?;
                let (dim, length) = dimension(&inner.spec, *dim)?;
                let range = start.unwrap_or(0)..end.unwrap_or(length);
                if range.start > range.end || range.end > length {
                    return Err(format!(
                        "{}..{} is outside of dimension {dim} of {}",
                        range.start, range.end, inner.spec
                    ));
                }
                take(inner, dim, vec![range], 1)
            }
            Expr::Blocks(inner, dim, count, order) => blocks(Bound::of(inner, find)?, *dim, *count, order),
            Expr::Concat(dim, parts) => concat(all(parts)?, *dim),
            Expr::Stack(dim, parts) => stack(all(parts)?, *dim),
            Expr::Repeat(inner, times) => repeat(Bound::of(inner, find)?, times),
            Expr::Pad(inner, dim, length, value) => {
                let inner = Bound::of(inner, find)?;
                let (dim, old) = dimension(&inner.spec, *dim)?;
                if *length < old {
                    return Err(format!(
                        "dimension {dim} of {} is longer than {length}: `truncate` shortens it",
                        inner.spec
                    ));
                }
                let element = cast::element(inner.spec.dtype, *value)?;
                let spec = with_length(&inner.spec, dim, *length);
                Bound::new(Op::Pad(dim, element), vec![inner], spec, Loss::Nothing)
            }
            Expr::Truncate(inner, dim, length) => {
                let inner = Bound::of(inner, find)?;
                let (dim, old) = dimension(&inner.spec, *dim)?;
                if *length > old {
                    return Err(format!(
                        "dimension {dim} of {} is shorter than {length}: `pad` lengthens it",
                        inner.spec
                    ));
                }
                take(inner, dim, std::iter::once(0..*length).collect(), 1)
            }
            Expr::Add(parts) => {
                let parts = all(parts)?;
                let spec = same(&parts, "add")?;
                cast::add(spec.dtype, &mut [], &[])?;
                let loss = if parts.len() > 1 { Loss::Elements } else { Loss::Nothing };
                Bound::new(Op::Add, parts, spec, loss)
            }
            Expr::Zeros(inner) => {
                let inner = Bound::of(inner, find)?;
                let spec = inner.spec.clone();
                Bound::new(Op::Zeros, vec![inner], spec, Loss::Elements)
            }
            Expr::Function(function, parts) => {
                let parts = all(parts)?;
                let specs: Vec<TensorSpec> = parts.iter().map(|part| part.spec.clone()).collect();
                let spec = function.function.spec(&specs).map_err(|e| format!("{}: {e:#}", function.name))?;
                Bound::new(Op::Function(function.clone()), parts, spec, function.function.loss())
            }
        }
    }

    /// Returns how far its elements can be verified: the least of everything that it is computed from.
    pub(super) fn verified_by(&self, source: &dyn TensorSource) -> VerifiedBy {
        let mut keys = BTreeSet::new();
        self.keys(&mut keys);
        keys.into_iter().map(|key| source.verified_by(key)).min().unwrap_or(VerifiedBy::Nothing)
    }

    /// Verifies everything that it is computed from.
    pub(super) fn verify_inputs(&self, source: &dyn TensorSource) -> Result<()> {
        let mut keys = BTreeSet::new();
        self.keys(&mut keys);
        keys.into_iter().try_for_each(|key| source.verify_tensor(key))
    }

    /// Verifies everything that it is computed from, and that it can be computed.
    pub(super) fn verify(&self, key: &str, source: &dyn TensorSource) -> Result<()> {
        self.verify_inputs(source)?;
        self.try_out(key, source)
    }

    /// Makes sure that everything that it is computed from can be read, and that it can be computed: see
    /// [`TensorSource::ensure_readable`].
    pub(super) fn ensure_readable(&self, key: &str, source: &dyn TensorSource) -> Result<bool> {
        let mut keys = BTreeSet::new();
        self.keys(&mut keys);
        for key in keys {
            if !source::check(source, key)? {
                return Ok(false);
            }
        }
        self.try_out(key, source)?;
        Ok(true)
    }

    /// Computes it if that may fail.
    fn try_out(&self, key: &str, source: &dyn TensorSource) -> Result<()> {
        match self.may_fail {
            true if self.streams() => self.for_each_piece(key, source, &mut |_, _| Ok(())),
            true => self.read(key, source).map(drop),
            false => Ok(()),
        }
    }

    /// Passes its elements on in pieces, with the byte at which each begins, if it [`streams`](Bound::streams). Verifies
    /// nothing.
    pub(super) fn for_each_piece(
        &self,
        key: &str,
        source: &dyn TensorSource,
        with: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let size = self.spec.dtype.size() as u64;
        let count = self.spec.bytes().unwrap_or_default() / size;
        let mut at = 0;
        while at < count {
            let end = (at + PIECE / size).min(count);
            with((at * size) as usize, &self.read_range(key, source, at..end)?)?;
            at = end;
        }
        Ok(())
    }

    /// Returns `true` if a range of it can be computed without the rest.
    pub(super) fn streams(&self) -> bool {
        match &self.op {
            Op::Source(_) | Op::Zeros => true,
            Op::Cast | Op::Reshape | Op::Add => self.inputs.iter().all(|input| input.streams()),
            _ => false,
        }
    }

    /// Returns its elements `range`, if it [`streams`](Bound::streams). Verifies nothing.
    pub(super) fn read_range(&self, key: &str, source: &dyn TensorSource, range: Range<u64>) -> Result<Vec<u8>> {
        let bytes = (range.end - range.start).checked_mul(self.spec.dtype.size() as u64);
        match (&self.op, self.inputs.as_slice()) {
            (Op::Source(from), _) => {
                let mut target = room(from, bytes)?;
                source.read_range(from, range, &mut target)?;
                Ok(target)
            }
            (Op::Zeros, _) => room(key, bytes),
            (Op::Reshape, [input]) => input.read_range(key, source, range),
            (_, inputs) => {
                let parts = inputs.iter().map(|input| input.read_range(key, source, range.clone()));
                self.compute(key, parts.collect::<Result<_>>()?)
            }
        }
    }

    /// Returns all its elements, verified as far as they can be.
    pub(super) fn read(&self, key: &str, source: &dyn TensorSource) -> Result<Vec<u8>> {
        match &self.op {
            Op::Source(from) => {
                let mut target = room(from, self.spec.bytes())?;
                source.read(from, &mut target)?;
                Ok(target)
            }
            Op::Zeros => room(key, self.spec.bytes()),
            _ => self.compute(key, self.inputs.iter().map(|input| input.read(key, source)).collect::<Result<_>>()?),
        }
    }

    /// Computes its elements from those of its inputs.
    fn compute(&self, key: &str, mut parts: Vec<Vec<u8>>) -> Result<Vec<u8>> {
        let failed = |reason: String| Error::object(key, reason);
        let bytes = self.spec.bytes();
        if let Op::Function(function) = &self.op {
            let specs: Vec<TensorSpec> = self.inputs.iter().map(|input| input.spec.clone()).collect();
            let made = function.function.apply(&specs, parts);
            let made = made.map_err(|e| failed(format!("{}: {e:#}", function.name)))?;
            return match bytes == Some(made.len() as u64) {
                true => Ok(made),
                false => Err(failed(format!("{} made {} bytes, not {}", function.name, made.len(), self.spec))),
            };
        }
        // The other lengths of a shape with a zero can be any numbers, and are not counted through.
        if bytes == Some(0) {
            return Ok(Vec::new());
        }
        if let Op::Concat(dim) = &self.op {
            return self.join(key, *dim, &parts);
        }
        if let Op::Add = &self.op {
            let mut parts = parts.into_iter();
            let mut sum = parts.next().unwrap_or_default();
            parts.try_for_each(|part| cast::add(self.spec.dtype, &mut sum, &part).map_err(failed))?;
            return Ok(sum);
        }
        let (Some(input), Some(from)) = (self.inputs.first(), parts.pop()) else {
            return Err(failed("it is made of nothing".to_string()));
        };
        match &self.op {
            Op::Cast => cast::cast(&from, input.spec.dtype, self.spec.dtype).map_err(failed),
            Op::Permute(axes) => {
                let mut target = room(key, bytes)?;
                permuted(&from, &input.spec, axes, &mut target);
                Ok(target)
            }
            Op::Take { dim, ranges, times } => {
                let rows = Rows::of(&input.spec, *dim);
                let mut target = reserve(key, bytes)?;
                for row in rows.of_bytes(&from) {
                    for _ in 0..*times {
                        for range in ranges {
                            let range = range.start as usize * rows.inner..range.end as usize * rows.inner;
                            target.extend_from_slice(row.get(range).unwrap_or_default());
                        }
                    }
                }
                Ok(target)
            }
            Op::Pad(dim, element) => {
                let rows = Rows::of(&input.spec, *dim);
                let wanted = self.spec.shape.get(*dim).map_or(0, |length| *length as usize) * rows.inner;
                let mut target = reserve(key, bytes)?;
                for row in rows.of_bytes(&from) {
                    target.extend_from_slice(row);
                    let missing = wanted.saturating_sub(row.len()) / element.len().max(1);
                    (0..missing).for_each(|_| target.extend_from_slice(element));
                }
                Ok(target)
            }
            _ => Ok(from),
        }
    }

    /// Concatenates parts along a dimension.
    fn join(&self, key: &str, dim: usize, parts: &[Vec<u8>]) -> Result<Vec<u8>> {
        let mut target = reserve(key, self.spec.bytes())?;
        let rows: Vec<(Rows, &Vec<u8>)> =
            self.inputs.iter().zip(parts).map(|(input, part)| (Rows::of(&input.spec, dim), part)).collect();
        for at in 0..rows.first().map_or(0, |(rows, _)| rows.outer) {
            for (rows, part) in &rows {
                let length = rows.length * rows.inner;
                target.extend_from_slice(part.get(at * length..(at + 1) * length).unwrap_or_default());
            }
        }
        Ok(target)
    }
}

/// Returns an empty buffer with capacity for so many bytes.
fn reserve(key: &str, bytes: Option<u64>) -> Result<Vec<u8>> {
    let mut target = room(key, bytes)?;
    target.clear();
    Ok(target)
}

/// Resolves a dimension that may be counted from the end. Returns its index and length.
fn dimension(spec: &TensorSpec, dim: i64) -> Result<(usize, u64), Refusal> {
    let rank = spec.shape.len() as i64;
    let place = if dim < 0 { dim.saturating_add(rank) } else { dim };
    let length = usize::try_from(place).ok().and_then(|place| Some((place, *spec.shape.get(place)?)));
    length.ok_or_else(|| format!("{spec} has no dimension {dim}"))
}

fn with_length(spec: &TensorSpec, dim: usize, length: u64) -> TensorSpec {
    let mut spec = spec.clone();
    if let Some(old) = spec.shape.get_mut(dim) {
        *old = length;
    }
    spec
}

fn permute(inner: Arc<Bound>, axes: Option<&[i64]>) -> Result<Arc<Bound>, Refusal> {
    let rank = inner.spec.shape.len();
    let axes: Vec<usize> = match axes {
        None => (0..rank).rev().collect(),
        Some(axes) => axes.iter().map(|axis| Ok(dimension(&inner.spec, *axis)?.0)).collect::<Result<_, Refusal>>()?,
    };
    if axes.iter().collect::<BTreeSet<_>>().len() != rank || axes.len() != rank {
        return Err(format!("the axes {axes:?} do not name each dimension of {} once", inner.spec));
    }
    let shape: Vec<u64> = axes.iter().map(|&axis| inner.spec.shape[axis]).collect();
    let spec = TensorSpec::new(inner.spec.dtype, shape);
    Bound::new(Op::Permute(axes), vec![inner], spec, Loss::Nothing)
}

fn reshape(inner: Arc<Bound>, shape: &[Option<u64>]) -> Result<Arc<Bound>, Refusal> {
    let all = inner.spec.shape.iter().try_fold(1u64, |product, length| product.checked_mul(*length));
    let known = shape.iter().flatten().try_fold(1u64, |product, length| product.checked_mul(*length));
    let open = shape.iter().filter(|length| length.is_none()).count();
    let refusal = || {
        let shape: Vec<String> = shape.iter().map(|length| length.map_or("_".into(), |n| n.to_string())).collect();
        format!("{} cannot have the shape [{}]", inner.spec, shape.join(", "))
    };
    let (Some(all), Some(known)) = (all, known) else { return Err(refusal()) };
    let follows = match open {
        0 if all == known => 0,
        1 if known > 0 && all % known == 0 => all / known,
        _ => return Err(refusal()),
    };
    let shape: Vec<u64> = shape.iter().map(|length| length.unwrap_or(follows)).collect();
    let spec = TensorSpec::new(inner.spec.dtype, shape);
    Bound::new(Op::Reshape, vec![inner], spec, Loss::Nothing)
}

fn flatten(inner: Arc<Bound>, first: i64, last: i64) -> Result<Arc<Bound>, Refusal> {
    let ((first, _), (last, _)) = (dimension(&inner.spec, first)?, dimension(&inner.spec, last)?);
    if first > last {
        return Err(format!("dimension {first} of {} comes after dimension {last}", inner.spec));
    }
    let mut shape: Vec<Option<u64>> = inner.spec.shape.iter().copied().map(Some).collect();
    let together = inner.spec.shape[first..=last].iter().try_fold(1u64, |product, n| product.checked_mul(*n));
    shape.splice(first..=last, [together]);
    reshape(inner, &shape)
}

fn take(inner: Arc<Bound>, dim: usize, ranges: Vec<Range<u64>>, times: u64) -> Result<Arc<Bound>, Refusal> {
    let length = inner.spec.shape.get(dim).copied().unwrap_or_default();
    let taken = ranges.iter().try_fold(0u64, |sum, range| sum.checked_add(range.end - range.start));
    let taken = taken.and_then(|taken| taken.checked_mul(times)).ok_or("the result is too long")?;
    let mut sorted = ranges.clone();
    sorted.sort_by_key(|range| range.start);
    let covered = sorted.iter().fold(0, |end, range| if range.start <= end { range.end.max(end) } else { end });
    let loss = if covered >= length && times > 0 { Loss::Nothing } else { Loss::Elements };
    let spec = with_length(&inner.spec, dim, taken);
    Bound::new(Op::Take { dim, ranges, times }, vec![inner], spec, loss)
}

fn blocks(inner: Arc<Bound>, dim: i64, count: u64, order: &[u64]) -> Result<Arc<Bound>, Refusal> {
    let (dim, length) = dimension(&inner.spec, dim)?;
    if count == 0 || length % count != 0 {
        return Err(format!("dimension {dim} of {} cannot be divided into {count} equal blocks", inner.spec));
    }
    if let Some(block) = order.iter().find(|block| **block >= count) {
        return Err(format!("there is no block {block} of {count}; they are counted from 0"));
    }
    let block = length / count;
    take(inner, dim, order.iter().map(|at| at * block..(at + 1) * block).collect(), 1)
}

fn same(parts: &[Arc<Bound>], what: &str) -> Result<TensorSpec, Refusal> {
    let first = parts.first().ok_or_else(|| format!("`{what}` needs a tensor"))?;
    match parts.iter().find(|part| part.spec != first.spec) {
        Some(other) => Err(format!("`{what}` needs tensors of one dtype and shape: {} and {}", first.spec, other.spec)),
        None => Ok(first.spec.clone()),
    }
}

fn concat(parts: Vec<Arc<Bound>>, dim: i64) -> Result<Arc<Bound>, Refusal> {
    let first = parts.first().ok_or("`concat` needs a tensor")?;
    let (dim, _) = dimension(&first.spec, dim)?;
    let mut length = 0u64;
    for part in &parts {
        let own = part.spec.shape.get(dim).copied().unwrap_or_default();
        if with_length(&part.spec, dim, 0) != with_length(&first.spec, dim, 0) {
            let (a, b) = (&first.spec, &part.spec);
            return Err(format!("`concat` needs tensors that differ in dimension {dim} only: {a} and {b}"));
        }
        length = length.checked_add(own).ok_or("the result is too long")?;
    }
    let spec = with_length(&first.spec, dim, length);
    Bound::new(Op::Concat(dim), parts, spec, Loss::Nothing)
}

fn stack(parts: Vec<Arc<Bound>>, dim: i64) -> Result<Arc<Bound>, Refusal> {
    let spec = same(&parts, "stack")?;
    let rank = spec.shape.len() as i64;
    let place = if dim < 0 { dim.saturating_add(rank + 1) } else { dim };
    let place = usize::try_from(place).ok().filter(|place| *place <= spec.shape.len());
    let place = place.ok_or_else(|| format!("{spec} has no place for a dimension {dim}"))?;
    let mut shape: Vec<Option<u64>> = spec.shape.iter().copied().map(Some).collect();
    shape.insert(place, Some(1));
    let parts = parts.into_iter().map(|part| reshape(part, &shape)).collect::<Result<_, _>>()?;
    concat(parts, place as i64)
}

fn repeat(inner: Arc<Bound>, times: &[u64]) -> Result<Arc<Bound>, Refusal> {
    let spec = &inner.spec;
    let Some(more) = times.len().checked_sub(spec.shape.len()) else {
        return Err(format!("`repeat` needs a number for each dimension of {spec}"));
    };
    let mut shape: Vec<Option<u64>> = vec![Some(1); more];
    shape.extend(spec.shape.iter().copied().map(Some));
    let mut repeated = if more > 0 { reshape(inner, &shape)? } else { inner };
    for (dim, times) in times.iter().enumerate().rev().filter(|(_, times)| **times != 1) {
        let length = repeated.spec.shape.get(dim).copied().unwrap_or_default();
        repeated = take(repeated, dim, std::iter::once(0..length).collect(), *times)?;
    }
    Ok(repeated)
}
