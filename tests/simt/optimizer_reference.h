// One step of each optimizer for one element in float64, written from the algorithms in
// torch.optim's documentation and from their options alone: nothing here is worked out beforehand.
#pragma once

#include <cmath>

#include "../../csrc/common/optimizer_args.h"

namespace reference {

using namespace mlp_ext;

inline double larger(double a, double b) {
  return std::isnan(a) || std::isnan(b) ? NAN : std::fmax(a, b);
}

struct Element {
  double param, grad, state[kMostStates];
};

inline double gradient(const RuleArgs& o, const Element& e, bool decoupled = false) {
  const double g = o.maximize ? -e.grad : e.grad;
  return decoupled ? g : g + o.weight_decay * e.param;
}
inline void decay(const RuleArgs& o, Element& e, bool decoupled) {
  if (decoupled) e.param -= o.lr * o.weight_decay * e.param;
}

inline void step(const SgdArgs& o, double, Element& e) {
  double g = gradient(o, e);
  if (o.momentum != 0) {
    double& buffer = e.state[0];
    buffer = o.first ? g : o.momentum * buffer + (1 - o.dampening) * g;
    g = o.nesterov ? g + o.momentum * buffer : buffer;
  }
  e.param -= o.lr * g;
}

inline void step(const AdamArgs& o, double t, Element& e) {
  const double g = gradient(o, e, o.decoupled);
  decay(o, e, o.decoupled);
  double &m = e.state[0], &v = e.state[1], &most = e.state[2];
  m = o.beta1 * m + (1 - o.beta1) * g;
  v = o.beta2 * v + (1 - o.beta2) * g * g;
  const double m_hat = m / (1 - std::pow(o.beta1, t));
  if (o.amsgrad) most = larger(most, v);
  const double v_hat = (o.amsgrad ? most : v) / (1 - std::pow(o.beta2, t));
  e.param -= o.lr * m_hat / (std::sqrt(v_hat) + o.eps);
}

inline void step(const AdagradArgs& o, double t, Element& e) {
  const double g = gradient(o, e);
  e.state[0] += g * g;
  e.param -= o.lr / (1 + (t - 1) * o.lr_decay) * g / (std::sqrt(e.state[0]) + o.eps);
}

inline void step(const RMSpropArgs& o, double, Element& e) {
  const double g = gradient(o, e);
  double &v = e.state[0], &mean = e.state[1], &buffer = e.state[2];
  v = o.alpha * v + (1 - o.alpha) * g * g;
  if (o.centered) mean = o.alpha * mean + (1 - o.alpha) * g;
  const double of = o.centered ? v - mean * mean : v;
  const double change = g / (std::sqrt(of) + o.eps);
  if (o.momentum > 0) {
    buffer = o.momentum * buffer + change;
    e.param -= o.lr * buffer;
  } else {
    e.param -= o.lr * change;
  }
}

inline double mu(const NAdamArgs& o, double t) {
  return o.beta1 * (1 - 0.5 * std::pow(0.96, t * o.momentum_decay));
}
inline double mu_product(const NAdamArgs& o, double t) {
  double product = 1;
  for (double i = 1; i <= t; ++i) product *= mu(o, i);
  return product;
}
inline void step(const NAdamArgs& o, double t, Element& e) {
  const double g = gradient(o, e, o.decoupled);
  decay(o, e, o.decoupled);
  double &m = e.state[0], &v = e.state[1];
  m = o.beta1 * m + (1 - o.beta1) * g;
  v = o.beta2 * v + (1 - o.beta2) * g * g;
  const double m_hat =
      mu(o, t + 1) * m / (1 - mu_product(o, t + 1)) + (1 - mu(o, t)) * g / (1 - mu_product(o, t));
  e.param -= o.lr * m_hat / (std::sqrt(v / (1 - std::pow(o.beta2, t))) + o.eps);
}

inline void step(const RAdamArgs& o, double t, Element& e) {
  const double g = gradient(o, e, o.decoupled);
  decay(o, e, o.decoupled);
  double &m = e.state[0], &v = e.state[1];
  m = o.beta1 * m + (1 - o.beta1) * g;
  v = o.beta2 * v + (1 - o.beta2) * g * g;
  const double m_hat = m / (1 - std::pow(o.beta1, t));
  const double b = std::pow(o.beta2, t), most = 2 / (1 - o.beta2) - 1;
  const double rho = most - 2 * t * b / (1 - b);
  double change = o.lr * m_hat;
  if (rho > 5) {
    const double l = std::sqrt(1 - b) / (std::sqrt(v) + o.eps);
    change *= l * std::sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho));
  }
  e.param -= change;
}

inline void step(const AdamaxArgs& o, double t, Element& e) {
  const double g = gradient(o, e);
  double &m = e.state[0], &most = e.state[1];
  m = o.beta1 * m + (1 - o.beta1) * g;
  most = larger(o.beta2 * most, std::fabs(g) + o.eps);
  e.param -= o.lr * m / ((1 - std::pow(o.beta1, t)) * most);
}

}  // namespace reference
