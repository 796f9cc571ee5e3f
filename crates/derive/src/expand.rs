//! Expands a struct to its implementation of `Trackable`.

use proc_macro2::{TokenStream, TokenTree};
use quote::{quote, quote_spanned};
use std::collections::HashSet;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Field, LitStr, Member, Result};

/// The attributes of a field.
#[derive(Default)]
struct Options {
    skip: bool,
    flatten: bool,
    rename: Option<LitStr>,
}

impl Options {
    fn of(field: &Field) -> Result<Options> {
        let mut options = Options::default();
        for attribute in field.attrs.iter().filter(|attribute| attribute.path().is_ident("track")) {
            attribute.parse_nested_meta(|meta| {
                let is_given = if meta.path.is_ident("skip") {
                    std::mem::replace(&mut options.skip, true)
                } else if meta.path.is_ident("flatten") {
                    std::mem::replace(&mut options.flatten, true)
                } else if meta.path.is_ident("rename") {
                    options.rename.replace(meta.value()?.parse()?).is_some()
                } else {
                    let reason = "there is no such option; those of a field are `skip`, `rename = \"…\"` and `flatten`";
                    return Err(meta.error(reason));
                };
                if is_given { Err(meta.error("it is given twice")) } else { Ok(()) }
            })?;
        }
        if let Some(name) = &options.rename {
            if name.value().is_empty() {
                return Err(Error::new(name.span(), "a name must not be empty"));
            }
            if options.flatten {
                return Err(Error::new(name.span(), "a field that is flattened has no name of its own"));
            }
        }
        if options.skip && (options.flatten || options.rename.is_some()) {
            return Err(Error::new(field.span(), "a field that is skipped can be neither renamed nor flattened"));
        }
        Ok(options)
    }
}

/// The implementation of `Trackable` for a struct.
pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let fields = match &input.data {
        Data::Struct(data) => &data.fields,
        Data::Enum(data) => return Err(Error::new(data.enum_token.span, ONLY_STRUCTS)),
        Data::Union(data) => return Err(Error::new(data.union_token.span, ONLY_STRUCTS)),
    };
    let attribute = input.attrs.iter().find(|attribute| attribute.path().is_ident("track"));
    if let Some(attribute) = attribute {
        return Err(Error::new(attribute.span(), "`track` is an attribute of fields"));
    }
    let mut names = HashSet::new();
    let mut tracked = Vec::new();
    let mut bounds = Vec::new();
    for (place, field) in fields.iter().enumerate() {
        let options = Options::of(field)?;
        if options.skip {
            continue;
        }
        let member = field.ident.clone().map_or_else(|| Member::from(place), Member::from);
        let ty = &field.ty;
        // With the field's span, so that the compiler points at the field if its type is not `Trackable`.
        let node = quote_spanned!(ty.span()=> <#ty as ::tch_checkpoint::Trackable>::node(&self.#member));
        let own = match &member {
            Member::Named(ident) => ident.to_string().trim_start_matches("r#").to_string(),
            Member::Unnamed(index) => index.index.to_string(),
        };
        tracked.push(if options.flatten {
            quote!(::tch_checkpoint::Field::flattened(#own, #node))
        } else {
            let name = options.rename.as_ref().map_or(own, LitStr::value);
            if !names.insert(name.clone()) {
                let span = options.rename.as_ref().map_or_else(|| field.span(), LitStr::span);
                return Err(Error::new(span, format!("another field is tracked as {name:?}")));
            }
            quote!(::tch_checkpoint::Field::named(#name, #node))
        });
        // A bound on the struct itself would be needed to prove that bound.
        if !names_any(quote!(#ty), &[&input.ident.to_string(), "Self"]) {
            bounds.push(quote_spanned!(ty.span()=> #ty: ::tch_checkpoint::Trackable));
        }
    }
    let ident = &input.ident;
    let mut generics = input.generics.clone();
    if generics.type_params().next().is_some() {
        let clause = generics.make_where_clause();
        for bound in bounds {
            clause.predicates.push(syn::parse2(bound)?);
        }
    }
    let (parameters, arguments, clause) = generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #parameters ::tch_checkpoint::Trackable for #ident #arguments #clause {
            fn node(&self) -> ::tch_checkpoint::Node {
                ::tch_checkpoint::Field::node_of([#(#tracked),*])
            }
        }
    })
}

/// Returns `true` if one of the names occurs in the tokens, in all groups.
fn names_any(tokens: TokenStream, names: &[&str]) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Group(group) => names_any(group.stream(), names),
        TokenTree::Ident(ident) => names.iter().any(|name| ident == name),
        _ => false,
    })
}

const ONLY_STRUCTS: &str = "`Trackable` can be derived for structs only: an enum changes its fields during training. Track a \
     `Value` of it, or implement `Trackable`";

#[cfg(test)]
mod tests {
    use super::*;

    /// The message of the error, and the source text that it points at.
    fn refusal(source: &str) -> (String, String) {
        let input: DeriveInput = syn::parse_str(source).unwrap();
        let error = expand(&input).unwrap_err();
        (error.to_string(), error.span().source_text().unwrap_or_default())
    }

    #[test]
    fn errors_point_at_the_field() {
        for (source, message, place) in [
            ("enum E { A }", "structs only", "enum"),
            ("union U { a: u8 }", "structs only", "union"),
            ("#[track(skip)] struct S { a: u8 }", "attribute of fields", "#[track(skip)]"),
            ("struct S { #[track(ignore)] a: u8 }", "no such option", "ignore"),
            ("struct S { #[track(skip, skip)] a: u8 }", "given twice", "skip"),
            ("struct S { #[track(rename = \"\")] a: u8 }", "empty", "\"\""),
            ("struct S { #[track(rename = \"b\", flatten)] a: u8 }", "no name of its own", "\"b\""),
            ("struct S { a: u8, #[track(rename = \"a\")] b: u8 }", "tracked as \"a\"", "\"a\""),
            ("struct S { #[track(rename = \"b\")] a: u8, b: Vec<u8> }", "tracked as \"b\"", "b: Vec<u8>"),
            ("struct S { #[track(skip, flatten)] a: u8 }", "skipped", "#[track(skip, flatten)] a: u8"),
        ] {
            let (said, at) = refusal(source);
            assert!(said.contains(message) && at == place, "{source}: {said} at {at}");
        }
    }

    /// Returns the source texts that the tokens of this name come from, in all groups.
    fn sources_of(name: &str, tokens: TokenStream) -> Vec<String> {
        let of = |token| match token {
            TokenTree::Group(group) => sources_of(name, group.stream()),
            TokenTree::Ident(ident) if ident == name => vec![ident.span().source_text().unwrap_or_default()],
            _ => Vec::new(),
        };
        tokens.into_iter().flat_map(of).collect()
    }

    /// The compiler reports a type that is not `Trackable` where the tokens that need it come from.
    #[test]
    fn what_needs_a_type_to_be_trackable_points_at_the_field() {
        let source = "struct S<T> { a: Counter, #[track(flatten)] b: std::time::Instant, c: Vec<T> }";
        let input: DeriveInput = syn::parse_str(source).unwrap();
        let expanded = expand(&input).unwrap();
        let types = ["Counter", "std::time::Instant", "Vec<T>"];
        // The calls; the last one is the name of the function.
        assert_eq!(sources_of("node", expanded.clone())[1..], types);
        // The bounds; the first one is the trait of the implementation.
        let bounds = sources_of("Trackable", expanded);
        assert_eq!(bounds[1..4], types);
    }

    #[test]
    fn a_struct_that_skips_all_is_an_empty_object() {
        let input: DeriveInput = syn::parse_str("struct S { #[track(skip)] a: u8 }").unwrap();
        assert!(expand(&input).unwrap().to_string().contains("node_of ([])"));
    }
}
