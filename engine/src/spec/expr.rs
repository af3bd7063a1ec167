//! `${{ }}` expressions inside the text of a scalar.
//!
//! A scalar that is exactly one expression takes the expression's value with its type; otherwise
//! values are put into the text. Expressions see `params`, `matrix`, and `env`, and a short list of
//! filters: they compute settings and are no program, so nothing in them reads a file or a clock.

use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

use indexmap::IndexMap;
use minijinja::value::{Serde, ValueKind};
use minijinja::{Environment, ErrorKind, Expression, UndefinedBehavior, filters, functions, tests};
use serde_json::Value;

use super::mistake::{Mistake, Sink, Source, Span};
use super::nearest;
use super::scalar::shorten;
use super::yaml::Scalar;

/// Longest expression.
const EXPRESSION_BYTES_MAX: usize = 2_000;

/// Longest text that an expression may give.
const RESULT_BYTES_MAX: usize = 1 << 20;

/// The filters of the expression language, with their help.
pub(crate) const FILTERS: &[(&str, &str)] = &[
    ("abs", "the number without its sign"),
    ("float", "as a number with a fraction"),
    ("int", "as an integer, rounded toward zero"),
    ("round", "rounded to the nearest; `round(2)` keeps two digits"),
    ("min", "the least of a list"),
    ("max", "the greatest of a list"),
    ("sum", "the sum of a list"),
    ("length", "how many items or characters"),
    ("first", "the first item"),
    ("last", "the last item"),
    ("list", "as a list, such as `range(3) | list`"),
    ("sort", "a list in ascending order"),
    ("join", "the items of a list as one text: `join(\"-\")`"),
    ("split", "a list of the parts of a text: `split(\",\")`"),
    ("string", "as text"),
    ("lower", "in lower case"),
    ("upper", "in upper case"),
    ("trim", "without blanks at the ends"),
    ("replace", "with one text in place of another: `replace(\"a\", \"b\")`"),
];

/// The expression language.
pub(crate) fn environment() -> Environment<'static> {
    let mut env = Environment::empty();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.add_filter("abs", filters::abs);
    env.add_filter("float", filters::float);
    env.add_filter("int", filters::int);
    env.add_filter("round", filters::round);
    env.add_filter("min", filters::min);
    env.add_filter("max", filters::max);
    env.add_filter("sum", filters::sum);
    env.add_filter("length", filters::length);
    env.add_filter("first", filters::first);
    env.add_filter("last", filters::last);
    env.add_filter("list", filters::list);
    env.add_filter("sort", filters::sort);
    env.add_filter("join", filters::join);
    env.add_filter("split", filters::split);
    env.add_filter("string", filters::string);
    env.add_filter("lower", filters::lower);
    env.add_filter("upper", filters::upper);
    env.add_filter("trim", filters::trim);
    env.add_filter("replace", filters::replace);
    env.add_test("in", tests::is_in);
    env.add_test("none", tests::is_none);
    env.add_test("odd", tests::is_odd);
    env.add_test("even", tests::is_even);
    env.add_test("string", tests::is_string);
    env.add_test("number", tests::is_number);
    env.add_function("range", functions::range);
    env
}

/// What an expression can name.
#[derive(Clone, Default)]
pub(crate) struct Scope {
    /// `params`, by name; `None` for a param that has a mistake of its own.
    params: Names,
    matrix: Names,
    env: Names,
    context: minijinja::Value,
}

/// The names of one root and their values.
#[derive(Clone, Default)]
struct Names {
    known: Rc<IndexMap<String, Option<Value>>>,
    value: minijinja::Value,
}

impl Names {
    fn new(known: IndexMap<String, Option<Value>>) -> Self {
        let given = known.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        let value = minijinja::Value::from_pairs(
            given.map(|(name, value)| (name.as_str(), minijinja::Value::from(Serde(value)))),
        );
        Self { known: Rc::new(known), value }
    }
}

impl Scope {
    pub(crate) fn new(
        params: IndexMap<String, Option<Value>>,
        env: IndexMap<String, Option<Value>>,
    ) -> Self {
        let scope = Self { params: Names::new(params), env: Names::new(env), ..Self::default() };
        scope.with_context()
    }

    /// The same scope with the values of a matrix.
    pub(crate) fn with_matrix(&self, values: &IndexMap<String, Value>) -> Self {
        let known = values.iter().map(|(axis, value)| (axis.clone(), Some(value.clone())));
        Self { matrix: Names::new(known.collect()), ..self.clone() }.with_context()
    }

    fn with_context(mut self) -> Self {
        self.context = minijinja::Value::from_pairs([
            ("params", self.params.value.clone()),
            ("matrix", self.matrix.value.clone()),
            ("env", self.env.value.clone()),
        ]);
        self
    }
}

struct Compiled<'env> {
    expression: Expression<'env, 'static>,
    /// Names it reads, such as `params.seed`.
    names: Vec<String>,
}

/// Evaluates expressions; each text is compiled once.
pub(crate) struct Evaluator<'env> {
    env: &'env Environment<'static>,
    source: &'env Source,
    compiled: IndexMap<String, Rc<Result<Compiled<'env>, minijinja::Error>>>,
    used_params: BTreeSet<String>,
    /// Every declared param, those below the one being read too.
    pub(crate) declared_params: BTreeSet<String>,
}

impl<'env> Evaluator<'env> {
    pub(crate) fn new(env: &'env Environment<'static>, source: &'env Source) -> Self {
        Self {
            env,
            source,
            compiled: IndexMap::new(),
            used_params: BTreeSet::new(),
            declared_params: BTreeSet::new(),
        }
    }

    /// Whether any expression has read a pipeline param.
    pub(crate) fn has_used(&self, param: &str) -> bool {
        self.used_params.contains(param) || self.used_params.contains("")
    }

    /// The value of a scalar, expressions evaluated. `None` when a mistake was pushed, or when the
    /// value depends on one that was.
    pub(crate) fn value(
        &mut self,
        scalar: &Scalar<'_>,
        span: Span,
        scope: &Scope,
        sink: &mut Sink,
    ) -> Option<Value> {
        if !scalar.text.contains("${{") {
            return Some(scalar.value());
        }
        let text = &*scalar.text;
        let parts = match split(text) {
            Ok(parts) => parts,
            Err(opening) => {
                let at = self.locate(span, text, opening..text.len());
                sink.push(
                    Mistake::new("spec::bad_expression", "`${{` is not closed by `}}`")
                        .at(at, "opened here")
                        .help("write `$${{` for the three characters themselves"),
                );
                return None;
            }
        };
        if let [Part::Expression(range)] = &parts[..] {
            let at = self.locate(span, text, range.clone());
            return self.evaluate(&text[range.clone()], at, scope, sink);
        }
        let mut result = String::with_capacity(text.len());
        let mut is_complete = true;
        for part in parts {
            let range = match part {
                Part::Text(part) => {
                    result.push_str(part);
                    continue;
                }
                Part::Expression(range) => range,
            };
            let at = self.locate(span, text, range.clone());
            let value = self.evaluate(&text[range], at, scope, sink);
            is_complete &= value.is_some_and(|value| interpolate(&value, &mut result, at, sink));
        }
        is_complete.then_some(Value::String(result))
    }

    fn evaluate(
        &mut self,
        expression: &str,
        at: Span,
        scope: &Scope,
        sink: &mut Sink,
    ) -> Option<Value> {
        let compiled = self.compile(expression);
        let compiled = match &*compiled {
            Ok(compiled) => compiled,
            Err(error) => {
                sink.push(Self::mistake(expression, at, error));
                return None;
            }
        };
        if !self.check_names(compiled, at, scope, sink) {
            return None;
        }
        let value = match compiled.expression.eval(scope.context.clone()) {
            Ok(value) => value,
            Err(error) => {
                sink.push(Self::mistake(expression, at, &error));
                return None;
            }
        };
        let is_infinite = f64::try_from(value.clone()).is_ok_and(|value| !value.is_finite());
        let json = serde_json::to_value(&value).ok().filter(|_| !is_infinite);
        let too_long = value.as_str().is_some_and(|text| text.len() > RESULT_BYTES_MAX);
        // A function is a value of the language, but no value for a setting.
        let is_data = !matches!(
            value.kind(),
            ValueKind::Undefined | ValueKind::Plain | ValueKind::Bytes | ValueKind::Invalid
        );
        let Some(json) = json.filter(|_| !too_long && is_data) else {
            let message = format!("`{}` gives no usable value", shorten(expression.trim()));
            sink.push(Mistake::new("spec::bad_expression", message).at(at, "evaluated here"));
            return None;
        };
        Some(json)
    }

    fn compile(&mut self, expression: &str) -> Rc<Result<Compiled<'env>, minijinja::Error>> {
        if let Some(compiled) = self.compiled.get(expression) {
            return Rc::clone(compiled);
        }
        let compiled = if expression.len() > EXPRESSION_BYTES_MAX {
            let detail = format!("the expression is longer than {EXPRESSION_BYTES_MAX} bytes");
            Err(minijinja::Error::new(ErrorKind::SyntaxError, detail))
        } else {
            self.env.compile_expression_owned(expression.to_owned()).map(|expression| {
                let mut names: Vec<_> = expression.undeclared_variables(true).into_iter().collect();
                names.sort();
                Compiled { expression, names }
            })
        };
        let compiled = Rc::new(compiled);
        self.compiled.insert(expression.to_owned(), Rc::clone(&compiled));
        compiled
    }

    /// Reports names that mean nothing; whether every name has a value.
    fn check_names(
        &mut self,
        compiled: &Compiled<'_>,
        at: Span,
        scope: &Scope,
        sink: &mut Sink,
    ) -> bool {
        let mut all_known = true;
        for name in &compiled.names {
            let (root, rest) = name.split_once('.').unwrap_or((name, ""));
            let field = rest.split('.').next().unwrap_or_default();
            let names = match root {
                "params" => &scope.params,
                "matrix" => &scope.matrix,
                "env" => &scope.env,
                "range" => continue,
                _ => {
                    sink.push(self.unknown_root(root, at, scope));
                    all_known = false;
                    continue;
                }
            };
            if root == "params" {
                self.used_params.insert(field.to_owned());
            }
            match names.known.get(field) {
                _ if field.is_empty() => {}
                Some(Some(_)) => {}
                Some(None) => all_known = false,
                None => {
                    sink.push(self.unknown_field(root, field, names, at));
                    all_known = false;
                }
            }
        }
        all_known
    }

    fn unknown_root(&self, root: &str, at: Span, scope: &Scope) -> Mistake {
        let roots = [("params", &scope.params), ("matrix", &scope.matrix), ("env", &scope.env)];
        let holder = roots.iter().find(|(_, names)| names.known.contains_key(root));
        let help = match holder {
            Some((holder, _)) => format!("write `{holder}.{root}`"),
            None => match nearest::nearest(root, ["params", "matrix", "env"]) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "expressions see `params.NAME`, `matrix.AXIS` and `env.NAME`".to_owned(),
            },
        };
        Mistake::new("spec::unknown_name", format!("`{root}` means nothing in an expression"))
            .at(self.narrow(at, root), "unknown name")
            .help(help)
    }

    fn unknown_field(&self, root: &str, field: &str, names: &Names, at: Span) -> Mistake {
        let known = names.known.keys().map(String::as_str);
        let (code, message) = match root {
            "params" => ("spec::unknown_param", format!("this pipeline has no param `{field}`")),
            "matrix" => ("spec::unknown_axis", format!("this node's matrix has no axis `{field}`")),
            _ => ("spec::unknown_env", format!("`env:` does not declare `{field}`")),
        };
        let help = match root {
            "params" if self.declared_params.contains(field) => {
                Some(format!("`{field}` is declared below; move it up"))
            }
            _ if !names.known.is_empty() => nearest::suggest(field, known, "known"),
            "params" => Some(format!("declare it: `params: {{{field}: …}}`")),
            "matrix" => Some(format!("give the node `matrix: {{{field}: […]}}`")),
            _ => Some(format!("declare it with a default: `env: {{{field}: \"…\"}}`")),
        };
        Mistake::new(code, message)
            .at(self.narrow(at, &format!("{root}.{field}")), "unknown name")
            .maybe_help(help)
    }

    fn mistake(expression: &str, at: Span, error: &minijinja::Error) -> Mistake {
        let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
        let help = (error.kind() == ErrorKind::UnknownFilter).then(|| {
            let names: Vec<_> = FILTERS.iter().map(|(name, _)| format!("`{name}`")).collect();
            let wanted = detail.split_whitespace().nth(1).unwrap_or_default();
            match nearest::nearest(wanted, FILTERS.iter().map(|(name, _)| *name)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("filters: {}", names.join(", ")),
            }
        });
        let expression = shorten(expression.trim());
        Mistake::new("spec::bad_expression", format!("cannot evaluate `{expression}`: {detail}"))
            .at(at, "in this expression")
            .maybe_help(help)
    }

    /// The place in the file of a range of a scalar's text.
    fn locate(&self, span: Span, text: &str, range: Range<usize>) -> Span {
        self.narrow(span, text[range].trim())
    }

    /// The place of `part` within a span, or the span when escapes or folding hide it.
    fn narrow(&self, span: Span, part: &str) -> Span {
        match self.source.slice(span).find(part) {
            Some(at) if !part.is_empty() => {
                let start = span.start as usize + at;
                self.source.first_line(Span::new(start, start + part.len()))
            }
            _ => self.source.first_line(span),
        }
    }
}

enum Part<'t> {
    Text(&'t str),
    /// The range between `${{` and `}}`.
    Expression(Range<usize>),
}

/// Cuts text at its expressions.
///
/// # Errors
/// The offset of a `${{` that is not closed.
fn split(text: &str) -> Result<Vec<Part<'_>>, usize> {
    let mut parts = Vec::new();
    let mut done = 0;
    let mut from = 0;
    while let Some(found) = text[from..].find("${{") {
        let opening = from + found;
        if text[..opening].ends_with('$') && opening > done {
            // `$${{` stands for `${{`.
            parts.push(Part::Text(&text[done..opening - 1]));
            parts.push(Part::Text("${{"));
            done = opening + 3;
            from = done;
            continue;
        }
        let start = opening + 3;
        let end = start + closing(&text[start..]).ok_or(opening)?;
        if opening > done {
            parts.push(Part::Text(&text[done..opening]));
        }
        parts.push(Part::Expression(start..end));
        done = end + 2;
        from = done;
    }
    if done < text.len() {
        parts.push(Part::Text(&text[done..]));
    }
    Ok(parts)
}

/// Offset of the `}}` that ends an expression: not in a string, not closing a map.
fn closing(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut quote, mut n_open, mut i) = (None, 0_usize, 0);
    while i < bytes.len() {
        match (quote, bytes[i]) {
            (Some(_), b'\\') => i += 1,
            (Some(open), byte) if byte == open => quote = None,
            (None, b'"' | b'\'') => quote = Some(bytes[i]),
            (None, b'{') => n_open += 1,
            (None, b'}') if n_open > 0 => n_open -= 1,
            (None, b'}') if bytes.get(i + 1) == Some(&b'}') => return Some(i),
            _ => {}
        }
        i += 1;
    }
    None
}

/// Puts a value into text; only what reads the same for everyone can be.
fn interpolate(value: &Value, result: &mut String, at: Span, sink: &mut Sink) -> bool {
    match value {
        Value::String(text) => result.push_str(text),
        Value::Number(_) | Value::Bool(_) => result.push_str(&value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            let what = super::scalar::describe(value);
            sink.push(
                Mistake::new("spec::bad_expression", format!("{what} cannot be put into text"))
                    .at(at, "gives that")
                    .help("make it text with a filter such as `join(\",\")`"),
            );
            return false;
        }
    }
    true
}
