//! Plots as pixels, with a font that comes along: no machine's own fonts are looked for.

use anyhow::Context;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree};

/// Pixels per unit of the drawing.
const SCALE: f32 = 2.0;

pub(crate) fn png(svg: &str) -> anyhow::Result<Vec<u8>> {
    let mut options = Options { font_family: "DejaVu Sans".into(), ..Options::default() };
    let fonts = options.fontdb_mut();
    fonts.load_font_data(dejavu::sans::regular().to_vec());
    fonts.load_font_data(dejavu::sans::bold().to_vec());
    let tree = Tree::from_str(svg, &options)?;
    let size = tree.size().to_int_size().scale_by(SCALE).context("a drawing without size")?;
    let mut pixels = Pixmap::new(size.width(), size.height()).context("a drawing without size")?;
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    Ok(pixels.encode_png()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_drawn_without_any_font_of_the_machine() {
        let draw = |text: &str| {
            png(&format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"60\" height=\"20\">\
                 <text x=\"2\" y=\"15\" font-family=\"DejaVu Sans, sans-serif\" font-size=\"13\">{text}</text></svg>"
            ))
            .unwrap()
        };
        assert_ne!(draw("bound"), draw(""));
    }
}
