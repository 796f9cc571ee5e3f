//! The free lengths of a signature's inputs: those that differ between its examples.

use crate::format::SavedModelInfo;
use tch::Tensor;

/// Lengths that must be equal, as (input, dimension).
pub(super) type Class = Vec<(usize, usize)>;

/// Returns the free lengths, in classes of those that are equal in all examples.
pub(super) fn free(examples: &[Vec<Tensor>]) -> Vec<Class> {
    let mut classes: Vec<(Vec<i64>, Class)> = Vec::new();
    let inputs = examples.first().map_or(0, Vec::len);
    for input in 0..inputs {
        let sizes: Vec<Vec<i64>> = examples.iter().map(|example| example[input].size()).collect();
        for dim in 0..sizes[0].len() {
            let values: Vec<i64> = sizes.iter().map(|size| size[dim]).collect();
            if values.iter().all(|value| *value == values[0]) {
                continue;
            }
            match classes.iter_mut().find(|(known, _)| *known == values) {
                Some((_, class)) => class.push((input, dim)),
                None => classes.push((values, vec![(input, dim)])),
            }
        }
    }
    classes.into_iter().map(|(_, class)| class).collect()
}

/// Returns why the signature does not accept these inputs, if lengths differ that are equal in all examples.
pub(super) fn refused(info: &SavedModelInfo, signature: &str, inputs: &[&Tensor]) -> Option<String> {
    let names = &info.signatures.get(signature)?.inputs;
    for class in info.same_lengths.get(signature)? {
        let mut first = None;
        for length in class {
            let place = names.iter().position(|input| input.name == length.input)?;
            let is = *inputs.get(place)?.size().get(usize::try_from(length.dim).ok()?)?;
            match first {
                None => first = Some((length, is)),
                Some((one, other)) if other != is => {
                    return Some(format!(
                        "{one} is {other} and {length} is {is}: they are the same in all examples that the program was \
                         made from, so it may take them for one. Export with an example in which they differ"
                    ));
                }
                Some(_) => {}
            }
        }
    }
    None
}
