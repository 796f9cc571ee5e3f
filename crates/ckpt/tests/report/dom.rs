//! A page as a tree, parsed as browsers parse it.

use html5ever::tendril::TendrilSink;
use html5ever::{ParseOpts, parse_document};
use markup5ever_rcdom::{Handle, NodeData, RcDom};
use std::collections::BTreeSet;

/// A parsed page.
pub struct Dom(RcDom);

impl Dom {
    /// Parses a page. Anything that the HTML standard calls a parse error fails the test.
    pub fn valid(html: &str) -> Dom {
        let mut options = ParseOpts::default();
        options.tokenizer.exact_errors = true;
        options.tree_builder.exact_errors = true;
        let dom = parse_document(RcDom::default(), options).one(html);
        assert!(dom.errors.borrow().is_empty(), "{:?}", dom.errors.borrow());
        Dom(dom)
    }

    /// Returns all elements, in order.
    pub fn elements(&self) -> Vec<Element> {
        let mut found = Vec::new();
        collect(&self.0.document, &mut found);
        found
    }

    /// Returns the elements with a name.
    pub fn named(&self, name: &str) -> Vec<Element> {
        self.elements().into_iter().filter(|element| element.name() == name).collect()
    }

    /// Returns the element with an id.
    pub fn by_id(&self, id: &str) -> Option<Element> {
        self.elements().into_iter().find(|element| element.attribute("id").as_deref() == Some(id))
    }

    /// Checks what a validator and a screen reader need.
    pub fn check(&self) {
        let elements = self.elements();
        let mut ids = BTreeSet::new();
        for id in elements.iter().filter_map(|element| element.attribute("id")) {
            assert!(ids.insert(id.clone()), "{id} is there twice");
        }
        for element in &elements {
            let name = element.name();
            for (attribute, value) in element.attributes() {
                assert!(!attribute.starts_with("on") && attribute != "style", "{name} has {attribute}");
                let target = match attribute.as_str() {
                    "href" => value.strip_prefix('#').map_or_else(|| panic!("a link to {value}"), Some),
                    "aria-controls" | "aria-labelledby" | "for" => Some(value.as_str()),
                    "src" | "srcset" | "action" | "poster" | "data" => panic!("{name} refers to {value}"),
                    _ => None,
                };
                assert!(target.is_none_or(|id| ids.contains(id)), "nothing has the id {target:?}");
            }
            let has = |attribute: &str| element.attribute(attribute).is_some();
            match name.as_str() {
                "svg" => assert!(has("aria-hidden") || has("aria-label") && has("role"), "an image without a text"),
                "table" => assert!(element.children().iter().any(|child| child.name() == "caption"), "no caption"),
                "th" => assert!(has("scope"), "a heading of nothing"),
                "input" | "select" => assert!(element.is_inside("label"), "a control without a label"),
                "button" => assert!(!element.text().trim().is_empty(), "a button without a text"),
                "link" | "iframe" | "object" | "img" | "form" => panic!("{name} is not used here"),
                _ => {}
            }
        }
        let headings = elements.iter().filter_map(|element| element.name().strip_prefix('h')?.parse::<u32>().ok());
        headings.fold(0, |above, level| {
            assert!(level <= above + 1, "a heading of level {level} below one of {above}");
            level
        });
        assert_eq!(self.named("main").len(), 1);
        assert_eq!(self.named("h1").len(), 1);
    }

    /// Returns headings, headings of tables and names of charts, one a line: the structure of the page.
    pub fn outline(&self) -> String {
        let line = |element: &Element| {
            let text = || element.text().split_whitespace().collect::<Vec<_>>().join(" ");
            match element.name().as_str() {
                "h1" => Some(text()),
                "h2" => Some(format!("  {}", text())),
                "h3" => Some(format!("    {}", text())),
                "figcaption" => Some(format!("      chart: {}", text())),
                "thead" => {
                    let cells = element.descendants().into_iter().filter(|cell| cell.name() == "th");
                    let cells: Vec<String> = cells.map(|cell| cell.text()).collect();
                    Some(format!("      table: {}", cells.join(" | ")))
                }
                _ => None,
            }
        };
        self.elements().iter().filter_map(line).collect::<Vec<String>>().join("\n") + "\n"
    }
}

fn collect(node: &Handle, found: &mut Vec<Element>) {
    if let NodeData::Element { .. } = node.data {
        found.push(Element(node.clone()));
    }
    node.children.borrow().iter().for_each(|child| collect(child, found));
}

/// An element of a page.
pub struct Element(Handle);

impl Element {
    pub fn name(&self) -> String {
        match &self.0.data {
            NodeData::Element { name, .. } => name.local.to_string(),
            _ => String::new(),
        }
    }

    pub fn attributes(&self) -> Vec<(String, String)> {
        match &self.0.data {
            NodeData::Element { attrs, .. } => {
                attrs.borrow().iter().map(|one| (one.name.local.to_string(), one.value.to_string())).collect()
            }
            _ => Vec::new(),
        }
    }

    pub fn attribute(&self, name: &str) -> Option<String> {
        self.attributes().into_iter().find(|(own, _)| own == name).map(|(_, value)| value)
    }

    pub fn children(&self) -> Vec<Element> {
        let children = self.0.children.borrow();
        children.iter().map(|child| Element(child.clone())).collect()
    }

    pub fn descendants(&self) -> Vec<Element> {
        let mut found = Vec::new();
        self.0.children.borrow().iter().for_each(|child| collect(child, &mut found));
        found
    }

    /// Returns the text in it.
    pub fn text(&self) -> String {
        fn add(node: &Handle, text: &mut String) {
            if let NodeData::Text { contents } = &node.data {
                text.push_str(&contents.borrow());
            }
            node.children.borrow().iter().for_each(|child| add(child, text));
        }
        let mut text = String::new();
        add(&self.0, &mut text);
        text
    }

    /// Returns `true` if an element of this name is around it.
    pub fn is_inside(&self, name: &str) -> bool {
        let parent = self.0.parent.take();
        self.0.parent.set(parent.clone());
        let parent = parent.and_then(|parent| parent.upgrade()).map(Element);
        parent.is_some_and(|parent| parent.name() == name || parent.is_inside(name))
    }
}
