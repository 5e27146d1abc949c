//! What was measured over time, drawn.

use std::path::Path;

use plotters::prelude::*;

/// A line of a chart: its name, and its values by second.
pub type Line<'a> = (&'a str, Vec<(f64, f64)>);

/// A chart: its title, and its lines.
pub type Chart<'a> = (&'a str, Vec<Line<'a>>);

/// Draws charts over the same seconds one below the other, as SVG.
pub fn draw(path: &Path, charts: &[Chart<'_>]) {
    let size = (900, 260 * charts.len() as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE).expect("a drawing");
    for ((title, lines), area) in charts.iter().zip(root.split_evenly((charts.len(), 1))) {
        let points = || lines.iter().flat_map(|(_, points)| points);
        let seconds = points().map(|(second, _)| *second).fold(1.0, f64::max);
        let highest = points().map(|(_, value)| *value).fold(1.0, f64::max);
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..seconds, 0.0..highest * 1.1)
            .expect("a chart");
        chart
            .configure_mesh()
            .x_desc("seconds")
            .draw()
            .expect("a grid");
        for (index, (name, points)) in lines.iter().enumerate() {
            let color = Palette99::pick(index).to_rgba();
            chart
                .draw_series(LineSeries::new(points.iter().copied(), color))
                .expect("a line")
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color));
        }
        chart
            .configure_series_labels()
            .border_style(BLACK)
            .background_style(WHITE)
            .draw()
            .expect("a legend");
    }
    root.present().expect("the file is written");
}
