// within_km(lat1 DOUBLE, lon1 DOUBLE, lat2 DOUBLE, lon2 DOUBLE, km DOUBLE) RETURNS BOOLEAN:
// are two points of the earth, in degrees, at most so far apart? Plain numbers: no prelude.

const EARTH_KM: f64 = 6371.0088;
const DEGREE: f64 = 0.017453292519943295;

export function within_km(lat1: f64, lon1: f64, lat2: f64, lon2: f64, km: f64): bool {
  const a = Math.sin((lat2 - lat1) * DEGREE / 2), b = Math.sin((lon2 - lon1) * DEGREE / 2);
  const h = a * a + Math.cos(lat1 * DEGREE) * Math.cos(lat2 * DEGREE) * b * b;
  return 2 * EARTH_KM * Math.asin(Math.sqrt(Math.min(h, 1))) <= km;
}
