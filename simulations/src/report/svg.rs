//! Drawings with axes, as SVG. Colours and the font are the variables of [`COLOURS`], which a page can set anew for
//! the dark; a drawing that stands alone has them filled in.

use std::fmt::Write;

pub(crate) const WIDTH: f64 = 480.0;
const MARGIN_LEFT: f64 = 52.0;
const MARGIN_RIGHT: f64 = 16.0;
const AXIS_HEIGHT: f64 = 42.0;
const LEGEND_ROW: f64 = 18.0;
const PLOT_HEIGHT: f64 = 220.0;
const BAR_ROW: f64 = 30.0;
/// Room for the names of bars and for the figures behind them.
const NAMES: f64 = 196.0;
const FIGURES: f64 = 64.0;

/// Variable, colour on a light ground, colour on a dark one. The series are Okabe's and Ito's colours, which people who
/// do not see red or green tell apart, made lighter for the dark where they need it.
pub(crate) const COLOURS: &[(&str, &str, &str)] = &[
    ("--ground", "#ffffff", "#15181c"),
    ("--ink", "#1b1f24", "#e8eaed"),
    ("--soft", "#5b6370", "#a3abb6"),
    ("--grid", "#dfe3e8", "#343a43"),
    ("--bound", "#1b1f24", "#e8eaed"),
    ("--s0", "#0072b2", "#56b4e9"),
    ("--s1", "#d55e00", "#ff8c42"),
    ("--s2", "#009e73", "#2fd0a2"),
    ("--s3", "#a6518a", "#dd93c0"),
    ("--s4", "#b07d00", "#f0c24b"),
    ("--s5", "#5b6370", "#6f7986"),
];
const FONT: (&str, &str) = ("--font", "DejaVu Sans, sans-serif");
/// Dashes of the series, so that colour is not all that tells them apart.
const DASHES: [&str; 6] = ["", "7 3", "2 3", "9 3 2 3", "5 2", "1 4"];

/// From values to places.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    pub(crate) title: String,
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// Each with its text.
    pub(crate) ticks: Vec<(f64, String)>,
    pub(crate) logarithmic: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// Its colour and dash: 0 is ours.
    pub(crate) style: usize,
    pub(crate) points: Vec<(f64, f64)>,
    /// Whether each point is a measurement of its own.
    pub(crate) marks: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    /// The figure as it is written.
    pub(crate) figure: String,
    pub(crate) ours: bool,
}

impl Axis {
    /// Even steps of a round length; at most `ticks_max` of them.
    pub(crate) fn linear(title: &str, from: f64, to: f64, ticks_max: usize) -> Self {
        let rough = (to - from) / ticks_max as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0].map(|factor| factor * power).into_iter().find(|&step| step >= rough);
        let step = step.unwrap_or(10.0 * power);
        let decimals = (0..6).find(|&decimals| step * 10f64.powi(decimals) > 0.999).unwrap_or(6);
        let decimals = usize::try_from(decimals).unwrap_or_default();
        let first = (from / step).ceil();
        let values =
            (0u32..).map(|at| (first + f64::from(at)) * step).take_while(|&value| value <= to + step * 1e-9);
        let ticks = values.map(|value| (value, format!("{value:.decimals$}")));
        Self { title: title.into(), from, to, ticks: ticks.collect(), logarithmic: false }
    }

    /// One tick for each of the values.
    pub(crate) fn logarithmic(title: &str, values: &[f64]) -> Self {
        let from = values.iter().copied().fold(f64::INFINITY, f64::min);
        let to = values.iter().copied().fold(0.0, f64::max);
        let ticks = values.iter().map(|&value| (value, grouped(value)));
        Self {
            title: title.into(),
            from: from / 1.2,
            to: to * 1.2,
            ticks: ticks.collect(),
            logarithmic: true,
        }
    }

    fn share(&self, value: f64) -> f64 {
        if self.logarithmic {
            (value / self.from).ln() / (self.to / self.from).ln()
        } else {
            (value - self.from) / (self.to - self.from)
        }
    }
}

/// `10000` as `10 000`.
pub(crate) fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if digits.len() > 4 && at > 0 && (digits.len() - at) % 3 == 0 {
            text.push('\u{a0}');
        }
        text.push(digit);
    }
    text
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The drawing with its variables filled in for a light ground.
pub(crate) fn alone(svg: &str) -> String {
    let colours = COLOURS.iter().map(|(name, light, _)| (*name, *light));
    colours
        .chain([FONT])
        .fold(svg.to_owned(), |svg, (name, value)| svg.replace(&format!("var({name})"), value))
}

struct Drawing {
    body: String,
}

impl Drawing {
    fn line(&mut self, from: (f64, f64), to: (f64, f64), style: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = write!(
            self.body,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" style=\"{style}\"/>"
        );
    }

    fn text(&mut self, at: (f64, f64), anchor: &str, style: &str, text: &str) {
        let (x, y) = at;
        let text = escape(text);
        let _ = write!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" style=\"fill:var(--ink);{style}\">{text}</text>"
        );
    }

    fn finish(self, height: f64, title: &str) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
             height=\"{height:.0}\" role=\"img\" aria-label=\"{}\" font-size=\"13\" style=\"font-family:var(--font)\">\
             <rect width=\"100%\" height=\"100%\" style=\"fill:var(--ground)\"/>{}</svg>\n",
            escape(title),
            self.body
        )
    }
}

/// Lines over two axes. `bound` is a value of x or y that is marked and named.
pub(crate) fn lines(title: &str, x: &Axis, y: &Axis, bound: Option<Mark<'_>>, series: &[Series]) -> String {
    let mut drawing = Drawing { body: String::new() };
    let top = legend(&mut drawing, series) + 34.0;
    let (left, right, bottom) = (MARGIN_LEFT, WIDTH - MARGIN_RIGHT, top + PLOT_HEIGHT);
    let place = |point: (f64, f64)| {
        (left + x.share(point.0) * (right - left), bottom - y.share(point.1) * (bottom - top))
    };
    for (value, name) in &y.ticks {
        let (_, at) = place((x.from, *value));
        drawing.line((left, at), (right, at), "stroke:var(--grid)");
        drawing.text((left - 6.0, at + 4.5), "end", "fill:var(--soft)", name);
    }
    for (value, name) in &x.ticks {
        let (at, _) = place((*value, y.from));
        drawing.line((at, bottom), (at, bottom + 4.0), "stroke:var(--soft)");
        drawing.text((at, bottom + 18.0), "middle", "fill:var(--soft)", name);
    }
    drawing.line((left, bottom), (right, bottom), "stroke:var(--soft)");
    drawing.text((right, bottom + 36.0), "end", "", &x.title);
    drawing.text((4.0, top - 22.0), "start", "", &y.title);
    match bound {
        Some(Mark::Across(value, name)) => {
            let (_, at) = place((x.from, value));
            drawing.line(
                (left, at),
                (right, at),
                "stroke:var(--bound);stroke-width:1.5;stroke-dasharray:4 3",
            );
            drawing.text((right, at + 15.0), "end", "", name);
        }
        Some(Mark::Upright(value, name)) => {
            let (at, _) = place((value, y.from));
            drawing.line(
                (at, top),
                (at, bottom),
                "stroke:var(--bound);stroke-width:1.5;stroke-dasharray:4 3",
            );
            drawing.text((at, top - 4.0), "middle", "", name);
        }
        None => {}
    }
    // Ours last: on top.
    for one in series.iter().rev() {
        draw_series(&mut drawing, one, place);
    }
    drawing.finish(bottom + AXIS_HEIGHT, title)
}

/// Where the bound is drawn, with its name.
pub(crate) enum Mark<'a> {
    Across(f64, &'a str),
    Upright(f64, &'a str),
}

fn draw_series(drawing: &mut Drawing, series: &Series, place: impl Fn((f64, f64)) -> (f64, f64)) {
    let style = series.style % DASHES.len();
    let places: Vec<(f64, f64)> = series.points.iter().map(|&point| place(point)).collect();
    let points: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = write!(
        drawing.body,
        "<polyline points=\"{}\" style=\"fill:none;stroke:var(--s{style});stroke-width:{};stroke-dasharray:{}\"/>",
        points.join(" "),
        if style == 0 { 3 } else { 2 },
        if DASHES[style].is_empty() { "none" } else { DASHES[style] },
    );
    for (x, y) in places.iter().filter(|_| series.marks) {
        let _ = write!(
            drawing.body,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" style=\"fill:var(--s{style})\"/>"
        );
    }
}

/// Two names a row. Returns the height.
fn legend(drawing: &mut Drawing, series: &[Series]) -> f64 {
    if series.len() < 2 {
        return 8.0;
    }
    for (at, one) in series.iter().enumerate() {
        let x = 8.0 + (at % 2) as f64 * WIDTH / 2.0;
        let y = 14.0 + (at / 2) as f64 * LEGEND_ROW;
        let line = Series { points: vec![(x, y - 4.5), (x + 26.0, y - 4.5)], marks: false, ..one.clone() };
        draw_series(drawing, &line, |point| point);
        drawing.text((x + 32.0, y), "start", "", &one.name);
    }
    series.len().div_ceil(2) as f64 * LEGEND_ROW + 12.0
}

/// Bars from zero. One longer than the axis is cut, and shows it. `bound` is marked and named.
pub(crate) fn bars(title: &str, axis: &Axis, bound: (f64, &str), bars: &[Bar]) -> String {
    let mut drawing = Drawing { body: String::new() };
    let (left, right, top) = (NAMES, WIDTH - FIGURES, 24.0);
    let bottom = top + bars.len() as f64 * BAR_ROW;
    let place = |value: f64| left + axis.share(value.min(axis.to)) * (right - left);
    for (value, name) in &axis.ticks {
        drawing.line((place(*value), top), (place(*value), bottom), "stroke:var(--grid)");
        drawing.text((place(*value), bottom + 16.0), "middle", "fill:var(--soft)", name);
    }
    for (row, bar) in bars.iter().enumerate() {
        let y = top + row as f64 * BAR_ROW;
        let weight = if bar.ours { "font-weight:bold" } else { "" };
        let colour = if bar.ours { "var(--s0)" } else { "var(--s5)" };
        let end = place(bar.value);
        drawing.text((left - 8.0, y + 20.0), "end", weight, &bar.name);
        let _ = write!(
            drawing.body,
            "<rect x=\"{left}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\" style=\"fill:{colour}\"/>",
            y + 6.0,
            (end - left).max(1.0),
            BAR_ROW - 10.0
        );
        if bar.value > axis.to {
            for shift in [18.0, 24.0] {
                let (foot, head) = ((end - shift - 4.0, y + BAR_ROW), (end - shift + 4.0, y + 2.0));
                drawing.line(foot, head, "stroke:var(--ground);stroke-width:3");
            }
        }
        drawing.text((end + 6.0, y + 20.0), "start", weight, &bar.figure);
    }
    let at = place(bound.0);
    drawing.line((at, top - 4.0), (at, bottom), "stroke:var(--bound);stroke-width:1.5;stroke-dasharray:4 3");
    drawing.text((at, top - 9.0), "middle", "", bound.1);
    drawing.text((right, bottom + 34.0), "end", "", &axis.title);
    drawing.finish(bottom + AXIS_HEIGHT, title)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_the_axis() {
        let axis = Axis::linear("", 0.98, 1.07, 5);
        let ticks: Vec<&str> = axis.ticks.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(ticks, ["0.98", "1.00", "1.02", "1.04", "1.06"]);
        let axis = Axis::linear("", 0.0, 3.5, 4);
        assert_eq!(axis.ticks.len(), 4);
        assert_eq!(axis.ticks[3].1, "3");
    }

    #[test]
    fn nothing_but_text_is_left_of_markup_in_names() {
        let bar = Bar { name: "<b> & \"".into(), value: 1.0, figure: String::new(), ours: true };
        let svg = bars("", &Axis::linear("", 0.0, 2.0, 4), (1.0, "bound"), &[bar]);
        assert!(svg.contains("&lt;b&gt; &amp; &quot;"), "{svg}");
    }

    #[test]
    fn a_drawing_alone_has_no_variable_left() {
        let series =
            Series { name: "one".into(), style: 1, points: vec![(1.0, 1.0), (2.0, 1.5)], marks: true };
        let axis = Axis::linear("", 0.0, 2.0, 4);
        let svg = lines("", &axis, &axis, Some(Mark::Across(1.0, "bound")), &[series.clone(), series]);
        assert!(svg.contains("var(--s1)"));
        assert!(!alone(&svg).contains("var("), "{}", alone(&svg));
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(grouped(16.0), "16");
        assert_eq!(grouped(1000.0), "1000");
        assert_eq!(grouped(10_000.0), "10\u{a0}000");
    }
}
