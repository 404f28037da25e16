//! Trees of lines, for people.

/// Longer lists are cut: the JSON has all of them.
const LINES_MAX: usize = 24;

#[derive(Debug)]
pub struct Node {
    line: String,
    pub children: Vec<Node>,
}

impl Node {
    pub fn new(line: String) -> Self {
        Self { line, children: Vec::new() }
    }

    pub fn leaf(&mut self, line: String) {
        self.children.push(Self::new(line));
    }

    pub fn list(line: String, lines: impl ExactSizeIterator<Item = String>) -> Self {
        let hidden = lines.len().saturating_sub(LINES_MAX);
        let mut node = Self::new(line);
        lines.take(LINES_MAX).for_each(|line| node.leaf(line));
        if hidden > 0 {
            node.leaf(format!("… and {hidden} more (-o json has all)"));
        }
        node
    }

    pub fn draw(&self) -> String {
        let mut text = format!("{}\n", self.line);
        self.draw_children("", &mut text);
        text
    }

    fn draw_children(&self, indent: &str, text: &mut String) {
        for (n, child) in self.children.iter().enumerate() {
            let last = n + 1 == self.children.len();
            let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            *text += &format!("{indent}{branch}{}\n", child.line);
            child.draw_children(&format!("{indent}{below}"), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_end_where_the_tree_ends() {
        let mut root = Node::new("root".to_owned());
        root.children.push(Node::list("list".to_owned(), ["a", "b"].map(str::to_owned).into_iter()));
        root.leaf("leaf".to_owned());
        assert_eq!(root.draw(), "root\n├─ list\n│  ├─ a\n│  └─ b\n└─ leaf\n");
    }

    #[test]
    fn long_lists_say_how_much_is_hidden() {
        let list = Node::list("list".to_owned(), (0..30).map(|n| n.to_string()));
        assert_eq!(list.children.len(), LINES_MAX + 1);
        assert!(list.draw().contains("and 6 more"));
    }
}
