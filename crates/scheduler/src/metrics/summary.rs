//! A Prometheus summary, which the metrics library does not have: quantiles over the newest samples.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{
    LabelPair, Metric, MetricFamily, MetricType, Quantile, Summary as Figures,
};

/// Samples per label value over which quantiles are taken.
const SAMPLES_MAX: usize = 1024;

/// The quantiles that Dragonfly v2 exports.
const QUANTILES: [f64; 4] = [0.5, 0.9, 0.95, 0.99];

/// A summary with at most one label, whose values come from a closed set.
#[derive(Debug)]
pub(super) struct Summary {
    desc: Desc,
    label: Option<&'static str>,
    series: Mutex<BTreeMap<String, Series>>,
}

#[derive(Debug, Default)]
struct Series {
    newest: VecDeque<f64>,
    count: u64,
    sum: f64,
}

impl Summary {
    pub(super) fn new(
        name: &str,
        help: &str,
        label: Option<&'static str>,
    ) -> prometheus::Result<Self> {
        let labels = label.iter().map(ToString::to_string).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), labels, Default::default())?;
        Ok(Self {
            desc,
            label,
            series: Mutex::default(),
        })
    }

    /// Takes a sample in, under `value` of the label, if there is one.
    pub(super) fn observe(&self, value: &str, sample: f64) {
        let mut series = self.series.lock();
        let series = series.entry(value.to_owned()).or_default();
        if series.newest.len() == SAMPLES_MAX {
            series.newest.pop_front();
        }
        series.newest.push_back(sample);
        series.count += 1;
        series.sum += sample;
    }

    fn metric(&self, value: &str, series: &Series) -> Metric {
        let labels = self.label.iter().map(|name| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.to_owned());
            pair
        });
        let mut sorted: Vec<f64> = series.newest.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let quantiles = QUANTILES.iter().map(|rank| {
            let mut quantile = Quantile::default();
            quantile.set_quantile(*rank);
            quantile.set_value(at_rank(&sorted, *rank));
            quantile
        });
        let mut figures = Figures::default();
        figures.set_sample_count(series.count);
        figures.set_sample_sum(series.sum);
        figures.set_quantile(quantiles.collect());
        let mut metric = Metric::from_label(labels.collect());
        metric.set_summary(figures);
        metric
    }
}

/// The sample below which `rank` of all lie.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an index below 1024"
)]
fn at_rank(sorted: &[f64], rank: f64) -> f64 {
    let index = (sorted.len() as f64 * rank) as usize;
    sorted
        .get(index.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

impl Collector for Shared {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        collect(&self.0)
    }
}

/// A summary that a registry and its user hold together.
#[derive(Debug, Clone)]
pub(super) struct Shared(pub(super) std::sync::Arc<Summary>);

fn collect(summary: &Summary) -> Vec<MetricFamily> {
    let mut family = MetricFamily::default();
    family.set_name(summary.desc.fq_name.clone());
    family.set_help(summary.desc.help.clone());
    family.set_field_type(MetricType::SUMMARY);
    let series = summary.series.lock();
    family.set_metric(
        series
            .iter()
            .map(|(value, series)| summary.metric(value, series))
            .collect(),
    );
    vec![family]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_newest_samples_and_the_sum_of_all() {
        let summary = Summary::new("example_milliseconds", "An example.", Some("level")).unwrap();
        (0..2048).for_each(|n| summary.observe("3", f64::from(n % 1024)));
        let registry = prometheus::Registry::new();
        registry
            .register(Box::new(Shared(std::sync::Arc::new(summary))))
            .unwrap();
        let text = runtime::metrics::text(&registry).unwrap();
        assert!(
            text.contains("example_milliseconds{level=\"3\",quantile=\"0.5\"} 512\n"),
            "{text}"
        );
        assert!(
            text.contains("example_milliseconds_count{level=\"3\"} 2048\n"),
            "{text}"
        );
    }
}
