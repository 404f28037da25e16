//! Pictures as inline SVG: lines and dots over two axes, each linear or logarithmic.

use std::fmt::Write;

use super::super::table::short;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 170.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;
const COLORS: [&str; 7] = ["#1f6feb", "#d1242f", "#8250df", "#bf8700", "#1a7f37", "#6e7781", "#bc4c00"];

/// A name with its unit.
#[derive(Debug, Clone)]
pub struct Axis {
    pub name: &'static str,
    pub logarithmic: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Series {
    pub name: String,
    pub points: Vec<[f64; 2]>,
    /// Not from this machine: drawn in dashes.
    pub quoted: bool,
}

#[derive(Debug, Clone)]
pub struct Chart {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

/// One axis with the room that its values need.
#[derive(Debug)]
struct Scale {
    logarithmic: bool,
    from: f64,
    to: f64,
    at: f64,
    length: f64,
}

impl Chart {
    /// Nothing, if there is nothing to draw.
    pub fn svg(&self) -> Option<String> {
        let drawn: Vec<Series> = self.series.iter().map(|series| self.drawable(series)).collect();
        let x = Scale::over(&drawn, 0, &self.x, LEFT, WIDTH - LEFT - RIGHT)?;
        let y = Scale::over(&drawn, 1, &self.y, HEIGHT - BOTTOM, -(HEIGHT - TOP - BOTTOM))?;
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>\n",
            escaped(&self.title)
        );
        self.draw_axes(&mut svg, &x, &y);
        for (number, series) in drawn.iter().filter(|series| !series.points.is_empty()).enumerate() {
            draw(&mut svg, series, number, &x, &y);
        }
        svg.push_str("</svg>\n");
        Some(svg)
    }

    /// A logarithm has no place for what is not above zero.
    fn drawable(&self, series: &Series) -> Series {
        let has_place = |value: f64, axis: &Axis| value.is_finite() && (!axis.logarithmic || value > 0.0);
        let points = series.points.iter().copied();
        let points = points.filter(|[x, y]| has_place(*x, &self.x) && has_place(*y, &self.y)).collect();
        Series { points, ..series.clone() }
    }

    fn draw_axes(&self, svg: &mut String, x: &Scale, y: &Scale) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for value in y.ticks() {
            let at = y.place(value);
            put(
                svg,
                format_args!(
                    "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" class=\"grid\"/>"
                ),
            );
            let text = label(value);
            put(
                svg,
                format_args!("<text x=\"{}\" y=\"{:.1}\" class=\"end\">{text}</text>", LEFT - 6.0, at + 4.0),
            );
        }
        for value in x.ticks() {
            let at = x.place(value);
            put(
                svg,
                format_args!(
                    "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\" class=\"grid\"/>"
                ),
            );
            let text = label(value);
            put(svg, format_args!("<text x=\"{at:.1}\" y=\"{}\" class=\"mid\">{text}</text>", bottom + 16.0));
        }
        let middle = LEFT + (right - LEFT) / 2.0;
        let name = escaped(self.x.name);
        put(svg, format_args!("<text x=\"{middle}\" y=\"{}\" class=\"mid\">{name}</text>", HEIGHT - 8.0));
        let (name, middle) = (escaped(self.y.name), TOP + (bottom - TOP) / 2.0);
        put(
            svg,
            format_args!(
                "<text transform=\"translate(14 {middle}) rotate(-90)\" class=\"mid\">{name}</text>"
            ),
        );
    }
}

fn draw(svg: &mut String, series: &Series, number: usize, x: &Scale, y: &Scale) {
    /// More would be a smear.
    const DOTS_MAX: usize = 40;
    let color = COLORS[number % COLORS.len()];
    let dashes = if series.quoted { " stroke-dasharray=\"5 4\"" } else { "" };
    let places: Vec<(f64, f64)> =
        series.points.iter().map(|[at, value]| (x.place(*at), y.place(*value))).collect();
    let line: String = places.iter().map(|(x, y)| format!("{x:.1},{y:.1} ")).collect();
    let line = line.trim_end();
    put(
        svg,
        format_args!(
            "<polyline points=\"{line}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.8\"{dashes}/>"
        ),
    );
    for (x, y) in places.iter().filter(|_| places.len() <= DOTS_MAX) {
        put(svg, format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>"));
    }
    let (left, top) = (WIDTH - RIGHT + 12.0, TOP + 8.0 + 18.0 * number as f64);
    let right = left + 18.0;
    put(
        svg,
        format_args!(
            "<line x1=\"{left}\" y1=\"{top}\" x2=\"{right}\" y2=\"{top}\" stroke=\"{color}\" stroke-width=\"1.8\"{dashes}/>"
        ),
    );
    let name = escaped(&series.name);
    put(svg, format_args!("<text x=\"{}\" y=\"{}\">{name}</text>", right + 6.0, top + 4.0));
}

/// Writing to a string can't fail.
fn put(svg: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = writeln!(svg, "{what}");
}

impl Scale {
    fn over(series: &[Series], axis: usize, is: &Axis, at: f64, length: f64) -> Option<Self> {
        let values = || series.iter().flat_map(|series| &series.points).map(|point| point[axis]);
        let (least, most) = (values().reduce(f64::min)?, values().reduce(f64::max)?);
        let (from, to) = match is.logarithmic {
            true => (10f64.powf(least.log10().floor()), 10f64.powf(most.log10().ceil())),
            // Zero belongs to it: half a difference must not look like a whole one.
            false => (least.min(0.0), most.max(0.0)),
        };
        let to = match (to > from, is.logarithmic) {
            (true, _) => to,
            (false, true) => from * 10.0,
            (false, false) => from + 1.0,
        };
        Some(Self { logarithmic: is.logarithmic, from, to, at, length })
    }

    fn place(&self, value: f64) -> f64 {
        let part = match self.logarithmic {
            true => (value / self.from).log10() / (self.to / self.from).log10(),
            false => (value - self.from) / (self.to - self.from),
        };
        self.at + part * self.length
    }

    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let decades = (self.to / self.from).log10().round() as i32;
            return (0..=decades).map(|decade| self.from * 10f64.powi(decade)).collect();
        }
        let step = round_step((self.to - self.from) / 5.0);
        let first = (self.from / step).ceil() as i64;
        let last = (self.to / step).floor() as i64;
        (first..=last).map(|number| number as f64 * step).collect()
    }
}

/// The next of 1, 2, 5, 10, …
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= step);
    factor.unwrap_or(10.0) * power
}

fn label(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 1e6 => format!("{}M", trimmed(value / 1e6)),
        size if size >= 1e3 => format!("{}k", trimmed(value / 1e3)),
        _ => trimmed(value),
    }
}

fn trimmed(value: f64) -> String {
    let text = short(value);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// As text in HTML and in an attribute.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<[f64; 2]>, logarithmic: bool) -> Chart {
        let axis = |name| Axis { name, logarithmic };
        let series = vec![Series { name: "ours & theirs".to_owned(), points, quoted: true }];
        Chart { title: "pause <ms>".to_owned(), x: axis("keys"), y: axis("ms"), series }
    }

    #[test]
    fn decades_are_as_far_from_each_other() {
        let scale = Scale { logarithmic: true, from: 1.0, to: 1e4, at: 0.0, length: 400.0 };
        assert_eq!(scale.ticks(), [1.0, 10.0, 100.0, 1e3, 1e4]);
        assert!((scale.place(100.0) - 200.0).abs() < 1e-9);
    }

    #[test]
    fn a_picture_has_its_points_and_no_raw_text() {
        let svg = chart(vec![[1e3, 0.5], [1e6, 2.0]], true).svg().expect("two points");
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(
            svg.contains("ours &amp; theirs")
                && svg.contains("pause &lt;ms&gt;")
                && svg.contains("dasharray")
        );
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn what_cannot_be_drawn_is_left_out() {
        assert!(chart(vec![], false).svg().is_none());
        let svg = chart(vec![[1.0, -4.0], [10.0, 4.0]], true).svg().expect("one point");
        assert_eq!(svg.matches("<circle").count(), 1);
        let flat = chart(vec![[5.0, 0.0]], false).svg().expect("one point");
        assert!(!flat.contains("NaN"), "{flat}");
    }
}
